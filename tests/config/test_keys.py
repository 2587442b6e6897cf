from pathlib import Path

import pytest

from cryoformer_dist.config.cluster import ClusterFile
from cryoformer_dist.config.keys import describe_files, find_sections, suggest_keys, to_markdown
from cryoformer_dist.config.loading import load_config
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.errors import ConfigError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def _keys(section: str) -> dict[str, tuple[str, str]]:
    return {key.name: (key.type, key.default) for found in find_sections(section) for key in found.keys}


def test_every_key_has_a_type_a_default_and_a_meaning() -> None:
    keys = [key for section in describe_files() for key in section.keys]
    assert len(keys) > 200
    assert [key.name for key in keys if not (key.name and key.type and key.default and key.meaning)] == []
    assert [section.name for section in describe_files() if not section.meaning] == []


def test_every_value_of_a_resolved_run_file_is_listed_with_its_default() -> None:
    config = RunConfig.model_validate({"dataset": {"store": "s.zarr"}}).model_dump(mode="json")
    listed = {name: default for name, (_, default) in _keys("run").items()}

    def walk(values: dict[str, object], prefix: str = "") -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")
            elif f"{prefix}{name}" != "dataset.store":
                told = listed.pop(f"{prefix}{name}")
                assert told == ("null" if value is None else str(value)), name

    walk(config)
    assert listed == {"dataset.store": "required"}


def test_types_say_what_may_be_written() -> None:
    training = _keys("training")
    assert training["training.global_batch_size"] == ("whole number (above 0) or auto", "64")
    assert training["training.coarse_box"] == ("whole number (at least 8) or null", "null")
    assert training["training.learning_rates.network"] == ("number (above 0)", "0.0007")
    assert _keys("dataset")["dataset.half"] == ("both or 1 or 2", "both")
    assert _keys("simulation.source.hinge")["source.axis"][0] == "list of 3: number or null"


def test_a_section_is_found_by_its_place_with_those_below_it() -> None:
    assert [section.name for section in find_sections("training")] == ["run.training", "run.training.learning_rates"]
    assert [section.name for section in find_sections("cluster.slurm")] == ["cluster.slurm", "cluster.slurm.workers"]
    assert find_sections("dataset.simulate.states") == find_sections("simulation.states")
    assert find_sections(None) == describe_files()


def test_a_section_that_is_not_there_is_refused_with_near_ones() -> None:
    with pytest.raises(ConfigError, match=r"trainin: no section of this name; there is training"):
        find_sections("trainin")
    with pytest.raises(ConfigError, match="run, simulation, cluster, sweep"):
        find_sections("zzz")


@pytest.mark.parametrize(
    ("schema", "place", "near"),
    [
        (RunConfig, ("training", "epoch"), ["training.epochs"]),
        (RunConfig, ("trainig",), ["training"]),
        (RunConfig, ("training", "queries"), ["model.decoder.queries"]),
        (RunConfig, ("dataset", "simulate", "source", "hinge", "modle"), ["dataset.simulate.source.model"]),
        (ClusterFile, ("slurm", "cpus_per_nodes"), ["cpus_per_node", "gpus_per_node"]),
        (RunConfig, ("training", "zzz"), []),
    ],
)
def test_near_keys_are_named_beside_the_unknown_one_first(
    schema: type[RunConfig], place: tuple[str, ...], near: list[str]
) -> None:
    assert suggest_keys(schema, place) == near


def test_a_misspelt_key_is_refused_with_the_one_that_was_meant(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("dataset: {store: s.zarr}\ntraining: {epoch: 3, zzz: 1}\n")
    with pytest.raises(ConfigError) as error:
        load_config(path, RunConfig)
    assert "training.epoch: no such key; did you mean training.epochs?" in str(error.value)
    assert "training.zzz: no such key; check the spelling" in str(error.value)


def test_the_page_of_the_docs_is_what_the_schemas_say() -> None:
    assert PAGE.read_text() == to_markdown(), "run: cryoformer-dist config schema --markdown > docs/configuration.md"
