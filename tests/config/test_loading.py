from pathlib import Path

import pytest
import yaml

from cryoformer_dist.config.cluster import LocalCluster
from cryoformer_dist.config.loading import dump_config, load_cluster, load_config, parse_config, parse_overrides
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.config.simulation import SimulationConfig
from cryoformer_dist.errors import ConfigError


def _file(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


MINIMAL = "dataset: {store: s.zarr}\n"


def test_a_minimal_file_takes_every_default(tmp_path: Path) -> None:
    config = load_config(_file(tmp_path, MINIMAL), RunConfig)
    assert config == RunConfig.model_validate({"dataset": {"store": "s.zarr"}})


def test_an_empty_file_is_all_defaults_where_nothing_is_required(tmp_path: Path) -> None:
    assert load_cluster(_file(tmp_path, "")) == LocalCluster()


def test_all_mistakes_are_told_at_once_with_their_dotted_keys(tmp_path: Path) -> None:
    text = "training: {epochs: 0, engine: jax}\nmodel: {decoder: {querys: 3}}\nname: a b\n"
    with pytest.raises(ConfigError) as error:
        load_config(_file(tmp_path, text), RunConfig)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{tmp_path / 'run.yaml'}: 5 mistakes"
    told = {line.split(":")[0].strip(): line for line in lines[1:]}
    assert set(told) == {"dataset", "training.epochs", "training.engine", "model.decoder.querys", "name"}
    assert "is required" in told["dataset"]
    assert "greater than 0" in told["training.epochs"]
    assert "got 0" in told["training.epochs"]
    assert "'deepspeed' or 'torch'" in told["training.engine"]
    assert "no such key" in told["model.decoder.querys"]


def test_a_single_mistake_is_counted_in_the_singular(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml: 1 mistake\n  training\.epochs: "):
        load_config(_file(tmp_path, MINIMAL + "training: {epochs: many}\n"), RunConfig)


def test_a_contradiction_between_keys_is_said_in_its_own_words(tmp_path: Path) -> None:
    text = MINIMAL + "training: {report_every_steps: 7, checkpoint_every_steps: 10}\n"
    with pytest.raises(ConfigError) as error:
        load_config(_file(tmp_path, text), RunConfig)
    assert str(error.value).splitlines()[1] == (
        "  (file): training.checkpoint_every_steps must be a multiple of training.report_every_steps"
    )


@pytest.mark.parametrize("number", ["1e-4", "1.e-4", "0.0001", "1.0e-4"])
def test_a_number_is_a_number_however_it_is_written(tmp_path: Path, number: str) -> None:
    path = _file(tmp_path, MINIMAL + f"training: {{learning_rates: {{network: {number}}}}}\n")
    assert load_config(path, RunConfig).training.learning_rates.network == 1e-4
    override = f"training.learning_rates.network={number}"
    overridden = load_config(_file(tmp_path, MINIMAL), RunConfig, [override])
    assert overridden.training.learning_rates.network == 1e-4


def test_overrides_win_over_the_file_and_the_last_over_the_first(tmp_path: Path) -> None:
    path = _file(tmp_path, MINIMAL + "training: {epochs: 3, seed: 1}\n")
    overrides = ["training.epochs=4", "model.latent.form=encoder", "training.epochs=5", "dataset.half=2"]
    config = load_config(path, RunConfig, overrides)
    assert config.training.epochs == 5
    assert config.training.seed == 1
    assert config.model.latent.form == "encoder"
    assert config.dataset.half == 2


def test_override_values_are_yaml(tmp_path: Path) -> None:
    config = parse_overrides(["states={kind: discrete, count: 3}", "snr=null", "box_size=16"], SimulationConfig, "x")
    assert config.states.count == 3
    assert config.snr is None
    assert load_config(_file(tmp_path, MINIMAL), RunConfig, ["dataset.store=a=b"]).dataset.store == "a=b"


def test_no_overrides_are_all_defaults() -> None:
    assert parse_overrides([], SimulationConfig, "simulate") == SimulationConfig()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "write dotted.key=value"),
        ("=5", "write dotted.key=value"),
        ("name.deeper=5", "'name' holds a value, not a section"),
        ("training.epochs=[1", r"override 'training\.epochs=\[1': not valid YAML"),
        ("training.epoch=5", "training.epoch: no such key"),
        ("training.epochs=0", "training.epochs: "),
    ],
)
def test_an_override_that_cannot_be_is_shown(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(_file(tmp_path, "name: a\n" + MINIMAL), RunConfig, [override])


def test_a_missing_file_is_named_with_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such file; `cryoformer-dist init"):
        load_config(tmp_path / "absent.yaml", RunConfig)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "not valid YAML"), ("- 1\n- 2\n", "found a list"), ("just words", "found a str")],
)
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"run\.yaml: .*{message}"):
        load_config(_file(tmp_path, text), RunConfig)


def test_a_written_out_configuration_reads_back_the_same_with_every_default(tmp_path: Path) -> None:
    values = {
        "dataset": {"store": "s.zarr", "half": 1, "simulate": {"source": {"kind": "phantom", "arc_deg": 40}}},
        "training": {"learning_rates": {"network": 3e-5}},
    }
    config = parse_config(values, RunConfig, "x")
    text = dump_config(config)
    assert load_config(_file(tmp_path, text), RunConfig) == config
    assert yaml.safe_load(text)["model"]["decoder"]["queries"] == config.model.decoder.queries
