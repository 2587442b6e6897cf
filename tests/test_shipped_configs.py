from pathlib import Path

import pytest

from cryoformer_dist.config.loading import load_config
from cryoformer_dist.config.schema import ClusterConfig, RunConfig

ROOT = Path(__file__).resolve().parents[1]
RUNS = sorted((ROOT / "configs").rglob("*.yaml"))
CLUSTERS = sorted((ROOT / "cluster").rglob("*.yaml"))


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_shipped_files() -> None:
    assert {"configs/demo.yaml", "cluster/local.yaml"} <= {_name(path) for path in RUNS + CLUSTERS}
    others = [path for folder in ("configs", "cluster") for path in (ROOT / folder).rglob("*.yml")]
    assert others == []


@pytest.mark.parametrize("path", RUNS, ids=_name)
def test_every_shipped_run_file_passes_its_schema(path: Path) -> None:
    load_config(path, RunConfig)


@pytest.mark.parametrize("path", CLUSTERS, ids=_name)
def test_every_shipped_cluster_file_passes_its_schema_and_names_a_run_file_that_is_there(path: Path) -> None:
    run = load_config(path, ClusterConfig).run
    assert run is None or (path.parent / run).resolve() in RUNS


@pytest.mark.parametrize("path", RUNS + CLUSTERS, ids=_name)
def test_every_shipped_file_begins_with_the_command_that_uses_it(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# cryoformer-dist ")
