from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ValidationError

from cryoformer_dist.config.cluster import LocalCluster, WorkersConfig
from cryoformer_dist.config.schema import RunConfig, TrainingConfig


def _run(**sections: object) -> RunConfig:
    return RunConfig.model_validate({"dataset": {"store": "s.zarr"}} | sections)


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _models(field.annotation)


ALL = sorted({*_models(RunConfig), *_models(LocalCluster)}, key=lambda model: model.__name__)


@pytest.mark.parametrize("model", ALL, ids=lambda model: model.__name__)
def test_every_section_is_closed_and_frozen(model: type[BaseModel]) -> None:
    assert model.model_config["extra"] == "forbid"
    assert model.model_config["frozen"]


@pytest.mark.parametrize("model", ALL, ids=lambda model: model.__name__)
def test_every_default_passes_its_own_check(model: type[BaseModel]) -> None:
    required = {name: "x" for name, field in model.model_fields.items() if field.is_required()}
    if "dataset" in required:
        required = {"dataset": {"store": "x"}}  # type: ignore[dict-item]
    config = model.model_validate(required)
    assert model.model_validate(config.model_dump()) == config


def test_the_two_half_sets_share_no_random_number_with_each_other() -> None:
    seeds = {
        half: _run(dataset={"store": "s.zarr", "half": half}, training={"seed": 7}).seed for half in ("both", 1, 2)
    }
    assert seeds["both"] == 7
    assert len(set(seeds.values())) == 3


def test_a_configuration_cannot_be_changed_after_the_check() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        _run().training.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", ["demo", "a.b-c_1", "7"])
def test_a_run_s_name_can_be_a_folder(name: str) -> None:
    assert _run(name=name).name == name


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "two words", "-x"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        _run(name=name)


def test_checkpoints_fall_on_reports() -> None:
    assert _run(training={"report_every_steps": 5, "checkpoint_every_steps": 15})
    with pytest.raises(ValidationError, match="must be a multiple"):
        _run(training={"report_every_steps": 10, "checkpoint_every_steps": 15})


def test_rays_need_the_sphere() -> None:
    assert _run(training={"projection": "rays", "occupancy": "sphere"})
    with pytest.raises(ValidationError, match=r"needs training\.occupancy: sphere"):
        _run(training={"projection": "rays"})


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("training", {"global_batch_size": 0}),
        ("training", {"final_learning_rate": 1.1}),
        ("training", {"learning_rates": {"network": 0}}),
        ("training", {"zero_stage": 3}),
        ("training", {"keep_checkpoints": 0}),
        ("model", {"latent": {"dimensions": 0}}),
        ("model", {"hash_grid": {"log2_table_size": 30}}),
        ("model", {"hash_grid": {"backend": "magic"}}),
        ("model", {"pose": {"form": "guess"}}),
        ("dataset", {"store": "s", "half": 3}),
        ("dataset", {"store": "s", "simulate": {"snr": 0}}),
    ],
)
def test_values_out_of_range_are_refused(section: str, value: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=section):
        _run(**{section: value})


def test_a_run_without_workers_is_refused() -> None:
    with pytest.raises(ValidationError):
        WorkersConfig(count=0)


def test_workers_of_one_run_do_not_share_a_gpu() -> None:
    assert WorkersConfig(count=1, gpus=0.5).gpus == 0.5
    for count in (2, "1..2"):
        with pytest.raises(ValidationError, match=r"0\.5: workers of a run cannot share a GPU; give each 1"):
            WorkersConfig(count=count, gpus=0.5)


def test_threads_are_those_asked_for_or_the_worker_s_share() -> None:
    assert TrainingConfig(threads_per_worker=3).threads_for(8) == 3
    assert [TrainingConfig().threads_for(cpus) for cpus in (0.2, 0.9, 4.0)] == [1, 1, 4]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"mask": "m.mrc", "occupancy": "sphere"}}, r"training\.mask takes the place of"),
        ({"training": {"focus_mask": "m.mrc"}, "model": {"domain": "fourier"}}, r"need model\.domain: real"),
        ({"training": {"mask": "m.mrc"}, "model": {"domain": "fourier"}}, r"need model\.domain: real"),
    ],
)
def test_masks_that_have_no_place_are_refused(sections: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _run(**sections)


def test_a_focus_goes_with_any_occupancy_and_with_rays() -> None:
    assert _run(training={"mask": "m.mrc", "focus_mask": "f.mrc"})
    assert _run(training={"focus_mask": "f.mrc", "occupancy": "sphere", "projection": "rays"})
