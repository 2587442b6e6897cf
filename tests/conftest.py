import os

from cryoformer_dist.orchestration.environment import prepare_environment

# Before anything imports torch or Ray.
os.environ.setdefault("OMP_NUM_THREADS", "1")
prepare_environment()

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real test files, beside the checkout or named by CRYOFORMER_TEST_DATA; never in the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CRYOFORMER_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no folder of real test files at {folder}; set CRYOFORMER_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store of 64 simulated particles of 16 pixels in shards of 16 rows, its source and truth beside it."""
    from tiny_runs import write_set

    return write_set(tmp_path_factory.mktemp("tiny"))
