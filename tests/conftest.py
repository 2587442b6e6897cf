import os

from cryoformer_dist.orchestration.environment import prepare_environment

# Before anything imports torch or Ray.
os.environ.setdefault("OMP_NUM_THREADS", "1")
prepare_environment()

from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

import pytest  # noqa: E402

if TYPE_CHECKING:
    from upath import UPath

    from cryoformer_dist.data.batch import ParticleBatch
    from cryoformer_dist.data.store import ParticleStore


def pytest_configure(config: pytest.Config) -> None:
    """Run Triton's kernels in its interpreter, on the CPU, unless the tests of real devices are asked for.

    Triton looks at the variable when a kernel's module is imported: test modules come later.
    """
    os.environ.setdefault("TRITON_INTERPRET", "0" if config.option.markexpr == "gpu" else "1")


@pytest.fixture
def cuda() -> str:
    """A real device; its tests are marked gpu."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return "cuda"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernel_device(request: pytest.FixtureRequest) -> str:
    """Where Triton's kernels run: interpreted on the CPU, and with ``-m gpu`` on a real device."""
    return "cpu" if request.param == "cpu" else str(request.getfixturevalue("cuda"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real test files, beside the checkout or named by CRYOFORMER_TEST_DATA; never in the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CRYOFORMER_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no folder of real test files at {folder}; set CRYOFORMER_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def shared_cases() -> Path:
    """Folder of inputs that once went wrong, beside the checkout or named by CRYOFORMER_TEST_CASES."""
    default = Path(__file__).resolve().parents[2] / "shared" / "cases"
    folder = Path(os.environ.get("CRYOFORMER_TEST_CASES", default))
    if not folder.is_dir():
        pytest.skip(f"no folder of inputs that went wrong at {folder}; set CRYOFORMER_TEST_CASES")
    return folder


@pytest.fixture(scope="session")
def object_store() -> Iterator[Callable[[], "UPath"]]:
    """An S3-compatible server on loopback; each call makes an empty bucket."""
    from support.object_store import serving_objects

    with serving_objects() as new_bucket:
        yield new_bucket


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store of 64 simulated particles of 16 pixels in shards of 16 rows, its source and truth beside it."""
    from support.tiny_runs import write_set

    return write_set(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def store(tiny_store: Path) -> "ParticleStore":
    from cryoformer_dist.data.store import ParticleStore

    return ParticleStore.open(tiny_store)


@pytest.fixture
def batch(store: "ParticleStore") -> "ParticleBatch":
    """The first six particles of the tiny store."""
    import numpy as np

    from cryoformer_dist.data.batch import ImageBlock, make_batch

    rows = np.arange(6)
    return make_batch(ImageBlock(store.read_images(rows), rows, rows * 0), store.particles())


@pytest.fixture(scope="session")
def finished_run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny store's run, trained to its end, its maps and tables made."""
    from support.tiny_runs import tiny_config, train

    from cryoformer_dist.analysis.results import reconstruct_alone
    from cryoformer_dist.storage.working_folder import WorkingFolder

    folder = tmp_path_factory.mktemp("finished") / "tiny"
    train(tiny_config(tiny_store), folder)
    reconstruct_alone(WorkingFolder.on_disk(folder))
    return folder


@pytest.fixture(scope="session")
def swinging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom whose arm swings through 120 degrees, at SNR 0.1."""
    from support.tiny_runs import write_set

    source = {"kind": "phantom", "arc_deg": 120}
    return write_set(tmp_path_factory.mktemp("arc"), particles=1000, box=32, source=source, snr=0.1)
