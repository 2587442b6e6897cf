import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cryoformer_dist.config.loading import load_cluster, load_config
from cryoformer_dist.config.nuisances import NuisancesConfig
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.config.simulation import PhantomSource
from cryoformer_dist.config.sweep import SweepConfig
from cryoformer_dist.model.kernels import encode_tinycudann
from cryoformer_dist.orchestration.config_files import read_run_file
from cryoformer_dist.orchestration.launch import choose_provider
from cryoformer_dist.orchestration.request import RunRequest, read_request
from cryoformer_dist.orchestration.sweep import read_sweep_request

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
RUNS = sorted(set((ROOT / "configs").rglob("*.yaml")) - set(SWEEPS))
BENCHMARKS = sorted((ROOT / "configs" / "bench").glob("*.yaml"))
CLUSTERS = sorted((ROOT / "cluster").rglob("*.yaml"))


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_shipped_files() -> None:
    assert {
        "configs/demo.yaml",
        "cluster/local.yaml",
        "configs/bench/igg_arc_32.yaml",
        "configs/sweeps/ablation_table2.yaml",
    } <= {_name(path) for path in RUNS + SWEEPS + CLUSTERS}
    others = sorted(_name(path) for folder in ("configs", "cluster") for path in (ROOT / folder).rglob("*.yml"))
    # As Prometheus has them.
    assert others == ["cluster/monitoring/alerts.yml", "cluster/monitoring/prometheus.yml"]


@pytest.mark.parametrize("path", RUNS, ids=_name)
def test_every_shipped_run_file_passes_its_schema(path: Path) -> None:
    load_config(path, RunConfig)


@pytest.mark.parametrize("path", BENCHMARKS, ids=_name)
def test_a_benchmark_is_read_without_its_structures_and_looks_for_them_beside_itself(
    path: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "bench" / path.name
    alone.parent.mkdir()
    shutil.copyfile(path, alone)
    config = read_run_file(alone, [])
    assert config.name == path.stem
    simulation = config.dataset.simulate
    assert simulation is not None
    source = simulation.source
    files = [
        value for value in (getattr(source, name) for name in type(source).model_fields) if isinstance(value, Path)
    ]
    assert {file.parent for file in files} == {alone.parent / "structures"}
    # Boxes of one subject go to stores of their own.
    assert path.stem in Path(config.dataset.store).parts
    assert Path(config.dataset.store).is_absolute()


@pytest.mark.parametrize("path", [path for path in BENCHMARKS if path.stem.startswith("real_")], ids=_name)
def test_realistic_sets_have_everything_that_is_unkind(path: Path) -> None:
    config = load_config(path, RunConfig)
    simulation = config.dataset.simulate
    assert simulation is not None
    off, nuisances = NuisancesConfig(), simulation.nuisances
    for name in ("noise", "brightness", "junk", "ctf_errors", "views"):
        assert getattr(nuisances, name) != getattr(off, name)
    assert nuisances.crowd.share == 0.5 or simulation.states.weights == (2, 1)
    errors = simulation.perturbation
    assert (errors.rotation_sd_deg, errors.shift_sd_pixels, nuisances.noise.ratio) == (2, 0.35, 21)


def test_recipes_of_unkind_sets_pass_the_schema() -> None:
    lines = (ROOT / "configs" / "bench" / "README.md").read_text().splitlines()
    recipes = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("unkind ")]
    assert [recipe[0] for recipe in recipes] == ["n0", "n1", "n2", "n3", "n4", "n5", "n6", "ice", "groups"]
    for _, *settings in recipes:
        overrides = [f"dataset.simulate.{setting}" for setting in settings]
        config = read_run_file(ROOT / "configs" / "bench" / "igg_arc_32.yaml", overrides)
        assert config.dataset.simulate is not None
        unset = load_config(ROOT / "configs" / "bench" / "igg_arc_32.yaml", RunConfig).dataset.simulate
        assert unset is not None
        changed = {
            name
            for name in ("nuisances", "perturbation")
            if getattr(config.dataset.simulate, name) != getattr(unset, name)
        }
        assert changed == {setting.split(".")[0].split("=")[0] for setting in settings}


@pytest.mark.parametrize("path", CLUSTERS, ids=_name)
def test_every_shipped_cluster_file_passes_its_schema_and_names_a_run_file_that_is_there(path: Path) -> None:
    run = load_cluster(path).run
    assert run is None or (path.parent / run).resolve() in RUNS


@pytest.mark.parametrize("path", SWEEPS, ids=_name)
def test_every_shipped_sweep_makes_trials_of_a_run_file_that_is_there_and_needs_no_download(path: Path) -> None:
    request = read_sweep_request(path, [])
    assert request.sweep.name == path.stem
    assert Path(request.sweep.run) in RUNS
    assert request.folder == ROOT / "runs" / path.stem
    assert len(request.trials) > 3
    simulation = request.base.dataset.simulate
    assert simulation is not None
    assert isinstance(simulation.source, PhantomSource)


def test_the_ablation_holds_the_rows_of_the_paper_s_table_2_the_full_model_first() -> None:
    sweep = load_config(ROOT / "configs" / "sweeps" / "ablation_table2.yaml", SweepConfig)
    rows = ["full", "no_orientation_refinement", "no_deformation_encoder", "no_spatial_attention", "fourier_domain"]
    assert list(sweep.variants)[:5] == rows
    assert sweep.variants["full"] == {}


@pytest.mark.parametrize("path", RUNS + SWEEPS + CLUSTERS, ids=_name)
def test_every_shipped_file_begins_with_the_command_that_uses_it(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# cryoformer-dist ")
    # Which names the file, or a cluster file that runs it.
    run = load_cluster(ROOT / "cluster" / "local.yaml").run
    default = run is not None and path == (ROOT / "cluster" / run).resolve()
    assert default or _name(path) in first.split()


@pytest.mark.parametrize("path", CLUSTERS, ids=_name)
def test_what_every_shipped_cluster_file_would_start_can_be_shown(path: Path) -> None:
    request = read_request(path, None, "trial", False, [])
    assert isinstance(request, RunRequest)
    preview = choose_provider(request.cluster).preview(request)
    assert "cryoformer_dist.cli drive" in preview
    assert "--name trial" in preview


IMAGE = ROOT / "cluster" / "image"


def _pins() -> dict[str, str]:
    lines = (IMAGE / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_the_image_pins_all_that_the_program_asks_for_and_ray_as_kuberay_is_told() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pins = {canonicalize_name(name): version for name, version in _pins().items()}
    for text in (*project["dependencies"], *extras["s3"], *extras["movie"]):
        wanted = Requirement(text)
        if wanted.name == "torch":
            (torch,) = set(re.findall(r"torch==([0-9.]+)", (IMAGE / "Dockerfile").read_text()))
            assert wanted.specifier.contains(torch)
        else:
            assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), text


def test_the_files_that_make_and_use_an_image_agree() -> None:
    dockerfile, definition = (IMAGE / "Dockerfile").read_text(), (IMAGE / "cryoformer-dist.def").read_text()
    (default,) = set(re.findall(r"TORCH=(torch==[0-9.]+)$", dockerfile, re.MULTILINE))
    assert f"TORCH={default}\n" in definition
    for part in ("pyproject.toml", "cryoformer_dist", "cluster", "configs", "cluster/image/install.sh"):
        assert part in dockerfile
        assert f"    {part} " in definition
    image = load_cluster(ROOT / "cluster" / "kuberay.yaml").image  # type: ignore[union-attr]
    assert image in dockerfile
    assert image in definition
    assert image.endswith(f":{tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['version']}")
    assert encode_tinycudann._COMMIT in (IMAGE / "install.sh").read_text()


def test_the_image_s_script_is_understood_by_a_plain_shell() -> None:
    for name in ("install.sh", "python"):
        done = subprocess.run(["sh", "-n", str(IMAGE / name)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
