import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.rank_processes import run_on_ranks
from torch import Tensor, nn

from cryoformer_dist.config.schema import TrainingConfig
from cryoformer_dist.errors import BackendUnavailableError, CheckpointError
from cryoformer_dist.ranks import gather_rows, rank_and_world, sum_over_ranks
from cryoformer_dist.training import engine as engine_module
from cryoformer_dist.training.engine import (
    DeepSpeedEngine,
    Engine,
    TorchEngine,
    Word,
    learning_rate_factor,
    parameter_groups,
)
from cryoformer_dist.training.train_rank import join_world_of_one

CPU = torch.device("cpu")
NAMES = ("hash_grid", "network", "encoder")
Make = Callable[..., tuple["_Quadratic", Engine]]


class _Quadratic(nn.Module):
    """A bowl over three parameters, one of each kind that has a rate of its own."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.grid = nn.ParameterDict({"table": nn.Parameter(torch.randn(7, 2, generator=generator))})
        self.line = nn.Linear(2, 3)
        self.image_encoder = nn.ParameterDict({"weight": nn.Parameter(torch.randn(4, generator=generator))})
        with torch.no_grad():
            for parameter in self.line.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, target: Tensor) -> Tensor:
        return torch.stack([(parameter - target).square().mean() for parameter in self.parameters()]).sum()


@pytest.fixture(scope="module")
def _world_of_one() -> Iterator[None]:
    join_world_of_one(CPU)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(params=["torch", "deepspeed-0", "deepspeed-1", "deepspeed-2"])
def make(request: pytest.FixtureRequest) -> Make:
    kind, _, stage = request.param.partition("-")

    def build(**training: object) -> tuple[_Quadratic, Engine]:
        module = _Quadratic()
        config = TrainingConfig(zero_stage=int(stage or 0), global_batch_size=16, **training)  # type: ignore[arg-type]
        if kind == "torch":
            return module, TorchEngine(module, config, CPU)
        return module, DeepSpeedEngine(module, config, CPU, particles_per_rank=4)

    if kind == "deepspeed":
        request.getfixturevalue("_world_of_one")
    return build


def _train(engine: Engine, steps: int, factor: float = 1.0) -> list[float]:
    losses = []
    for step in range(steps):
        loss = engine.forward(torch.tensor(0.1 * step))
        engine.step(loss, factor)
        losses.append(loss.item())
    return losses


def _word(stopped: float) -> Word:
    """That every rank says the norm of its gradients, and that all hear so."""
    return Word(lambda norm: norm[None], lambda heard: torch.full_like(heard[0], stopped))


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


class TestEngineContract:
    """What the loop relies on, whichever engine it is."""

    def test_alone_it_is_rank_zero_of_one_on_the_device_given(self, make: Make) -> None:
        _, engine = make()
        assert (engine.rank, engine.world, engine.device) == (0, 1, CPU)

    def test_steps_go_downhill(self, make: Make) -> None:
        _, engine = make()
        losses = []
        for _ in range(20):
            loss = engine.forward(torch.tensor(0.5))
            engine.step(loss, 1.0)
            losses.append(loss.item())
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < losses[0]

    def test_at_rate_zero_nothing_moves(self, make: Make) -> None:
        module, engine = make(weight_decay=0.5)
        before = _copy(module)
        _train(engine, 3, factor=0.0)
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[name]), name

    def test_a_step_that_is_stopped_leaves_weights_and_optimiser_as_they_are_whatever_the_gradients(
        self, make: Make
    ) -> None:
        (module, engine), (other, undisturbed) = make(weight_decay=0.5), make(weight_decay=0.5)
        _train(engine, 2)
        before = _copy(module)
        engine.step(engine.forward(torch.tensor(torch.nan)), 1.0, _word(1.0))
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[name]), name
        # What comes after shows that momentum and the number of steps have not changed either.
        _train(undisturbed, 2)
        for one in (engine, undisturbed):
            one.step(one.forward(torch.tensor(0.3)), 1.0, _word(0.0))
        for name, value in module.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
            assert not torch.equal(value, before[name]), name

    def test_each_kind_of_parameter_moves_at_its_own_rate_times_the_factor(self, make: Make) -> None:
        rates = {"hash_grid": 0.1, "network": 0.01, "encoder": 0.001}
        module, engine = make(learning_rates=rates, weight_decay=0.0)
        before = _copy(module)
        _train(engine, 1, factor=0.5)
        # The first step of Adam is the rate itself, whatever the gradient.
        names = {"grid.table": "hash_grid", "line.weight": "network", "image_encoder.weight": "encoder"}
        for name, kind in names.items():
            step = (module.state_dict()[name] - before[name]).abs()
            torch.testing.assert_close(step, torch.full_like(step, 0.5 * rates[kind]), rtol=1e-3, atol=0)

    def test_rates_are_those_of_the_configuration_not_of_the_checkpoint_gone_on_with(
        self, make: Make, tmp_path: Path
    ) -> None:
        _, donor = make(learning_rates=dict.fromkeys(NAMES, 0.1))
        _train(donor, 2)
        donor.save(tmp_path / "engine")
        module, engine = make(learning_rates=dict.fromkeys(NAMES, 1e-30), weight_decay=0.0)
        engine.load(tmp_path / "engine")
        before = _copy(module)
        _train(engine, 2)
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[name]), name

    def test_gradients_do_not_add_up_over_steps(self, make: Make) -> None:
        module, engine = make()
        reference = _Quadratic()
        optimizer = torch.optim.AdamW(
            parameter_groups(reference, TrainingConfig(global_batch_size=16)), betas=(0.9, 0.99)
        )
        _train(engine, 5)
        for step in range(5):
            optimizer.zero_grad()
            reference(torch.tensor(0.1 * step)).backward()
            optimizer.step()
        for name, value in reference.state_dict().items():
            torch.testing.assert_close(module.state_dict()[name], value, rtol=0, atol=1e-6)

    def test_a_part_that_takes_no_part_in_a_step_stays_whatever_it_has_learned_before(self, make: Make) -> None:
        module, engine = make(weight_decay=0.5)
        _train(engine, 3)
        before = _copy(module)
        for _ in range(3):
            engine.forward(torch.tensor(0.5))
            engine.step((module.image_encoder["weight"] - 2.0).square().mean(), 1.0)
        moved = {name: not torch.equal(value, before[name]) for name, value in module.state_dict().items()}
        assert moved == {name: name == "image_encoder.weight" for name in before}

    def test_a_saved_state_goes_on_bit_equal(self, make: Make, tmp_path: Path) -> None:
        module, engine = make()
        _train(engine, 4)
        engine.save(tmp_path / "engine")
        expected = _train(engine, 3, factor=0.7)
        resumed_module, resumed = make()
        resumed.load(tmp_path / "engine")
        assert _train(resumed, 3, factor=0.7) == expected
        for name, value in module.state_dict().items():
            assert torch.equal(resumed_module.state_dict()[name], value), name

    def test_absent_storage_is_told_after_all_have_met_and_not_made_anew(self, make: Make, tmp_path: Path) -> None:
        _, engine = make()
        place = tmp_path / "away" / "engine"
        with pytest.raises((OSError, RuntimeError)):
            engine.save(place)
        assert not place.parent.exists()
        place.parent.mkdir()
        engine.save(place)
        engine.load(place)

    def test_an_absent_state_is_named_with_the_way_out(self, make: Make, tmp_path: Path) -> None:
        _, engine = make()
        with pytest.raises(CheckpointError, match=rf"{tmp_path}.*training\.zero_stage above 0"):
            engine.load(tmp_path)

    def test_long_gradients_are_cut(self, make: Make) -> None:
        moments = []
        for clipping in (0.0, 1e-3):
            _, engine = make(gradient_clipping=clipping)
            engine.step(engine.forward(torch.tensor(5.0)), 1.0)
            inner = getattr(engine, "_optimizer", None) or engine._engine.optimizer  # type: ignore[attr-defined]
            inner = getattr(inner, "optimizer", inner)
            squares = [state["exp_avg_sq"].sum() for state in inner.state.values()]
            moments.append(torch.stack(squares).sum().sqrt().item())
        # sqrt(1 - 0.99) times the gradient's norm.
        assert moments[0] > 0.1
        assert moments[1] == pytest.approx(0.1 * 1e-3, rel=1e-2)


@pytest.mark.usefixtures("_world_of_one")
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_deepspeed_gives_the_weights_of_plain_torch(stage: int) -> None:
    config = TrainingConfig(zero_stage=stage, gradient_clipping=0.5)  # type: ignore[arg-type]
    modules = _Quadratic(), _Quadratic()
    _train(TorchEngine(modules[0], config, CPU), 5)
    _train(DeepSpeedEngine(modules[1], config, CPU, particles_per_rank=4), 5)
    for name, value in modules[0].state_dict().items():
        torch.testing.assert_close(modules[1].state_dict()[name], value, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("_world_of_one")
@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_gathers_gradients_in_the_memory_of_the_network_and_times_nothing(stage: int) -> None:
    module = _Quadratic()
    engine = DeepSpeedEngine(module, TrainingConfig(zero_stage=stage), CPU, particles_per_rank=4)  # type: ignore[arg-type]
    inner = engine._engine
    assert inner.optimizer.reduce_bucket_size == sum(parameter.numel() for parameter in module.parameters())
    _train(engine, 3)
    assert inner.tput_timer.total_elapsed_time == 0


@pytest.mark.usefixtures("_world_of_one")
def test_without_shards_either_engine_goes_on_with_the_other_s_state(tmp_path: Path) -> None:
    config = TrainingConfig()

    def engines() -> tuple[Engine, Engine]:
        return TorchEngine(_Quadratic(), config, CPU), DeepSpeedEngine(_Quadratic(), config, CPU, particles_per_rank=4)

    for number, (first, second) in enumerate((engines(), engines()[::-1])):
        folder = tmp_path / str(number)
        _train(first, 4)
        first.save(folder)
        second.load(folder)
        assert _train(second, 3) == pytest.approx(_train(first, 3), abs=1e-6)


@pytest.mark.usefixtures("_world_of_one")
def test_shards_of_other_ranks_are_refused_with_their_number(tmp_path: Path) -> None:
    engine = DeepSpeedEngine(_Quadratic(), TrainingConfig(zero_stage=1), CPU, particles_per_rank=4)
    engine.save(tmp_path)
    (shard,) = (tmp_path / "engine").glob("*optim_states.pt")
    shard.with_name(shard.name.replace("rank_0", "rank_1")).write_bytes(shard.read_bytes())
    with pytest.raises(CheckpointError, match="shards of 2 ranks, and 1 ranks are to go on"):
        engine.load(tmp_path)


def _train_a_resting_part() -> dict[str, Any]:
    """One of the processes that train all parts, then the encoder alone, each towards a target of its own."""
    rank = rank_and_world()[0]
    config, states = TrainingConfig(weight_decay=0.5), {}
    for kind in ("torch", "deepspeed"):
        module = _Quadratic()
        engine = TorchEngine(module, config, CPU) if kind == "torch" else DeepSpeedEngine(module, config, CPU, 4)
        _train(engine, 3)
        before = _copy(module)
        for _ in range(3):
            engine.forward(torch.tensor(0.5))
            engine.step((module.image_encoder["weight"] - 2.0 - rank).square().mean(), 1.0)
        states[kind] = (before, _copy(module))
    return states


def test_two_ranks_too_leave_a_part_that_takes_no_part_alone() -> None:
    ranks = run_on_ranks(2, _train_a_resting_part)
    for kind in ("torch", "deepspeed"):
        for before, after in (rank[kind] for rank in ranks):
            moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
            assert moved == {"image_encoder.weight"}, kind
        for name, value in ranks[0][kind][1].items():
            assert torch.equal(value, ranks[1][kind][1][name]), name


def test_each_encoder_is_a_group_of_its_own() -> None:
    module = nn.ModuleDict({"latent_encoder": nn.Linear(2, 2), "decoder": nn.Linear(2, 2)})
    module["orientation_encoder"] = nn.ModuleDict({"encoder": nn.Linear(2, 2)})
    groups = parameter_groups(
        module, TrainingConfig(global_batch_size=16, learning_rates={"network": 1.0, "encoder": 2.0})
    )  # type: ignore[arg-type]
    assert [(group["lr"], len(group["params"])) for group in groups] == [(1.0, 2), (2.0, 2), (2.0, 2)]
    assert groups[2]["params"] == list(module["orientation_encoder"].parameters())


def test_every_parameter_is_in_one_group_and_the_table_does_not_decay() -> None:
    module = _Quadratic()
    groups = parameter_groups(module, TrainingConfig())
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in module.parameters())
    assert [group["weight_decay"] for group in groups] == [0.0, 1e-4, 1e-4]
    assert groups[0]["params"] == [module.grid["table"]]


def test_a_table_entry_that_no_point_touches_stays() -> None:
    module = _Quadratic()
    engine = TorchEngine(module, TrainingConfig(weight_decay=0.5), CPU)
    before = _copy(module)["grid.table"]
    engine.step(module.grid["table"][2:].square().sum(), 1.0)
    moved = (module.grid["table"] != before).any(-1)
    assert moved.tolist() == [False, False, True, True, True, True, True]


def test_without_deepspeed_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(BackendUnavailableError, match=r"engine: deepspeed cannot be loaded.*pip install.*torch"):
        engine_module._import_deepspeed(CPU)


def test_deepspeed_is_held_to_the_device_that_the_worker_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    engine_module._import_deepspeed(CPU)
    assert os.environ["DS_ACCELERATOR"] == "cpu"
    placed = engine_module._placed_on(torch.device("cuda:1"))
    assert placed is not None
    assert placed.device_rank == 1
    assert engine_module._placed_on(CPU) is None


@pytest.mark.parametrize("kind", ["torch", "deepspeed"])
def test_what_ranks_say_at_a_step_is_summed_and_heard_by_all(kind: str) -> None:
    ranks = run_on_ranks(2, _tell_one_another, kind)
    for found in ranks:
        assert found["heard"].tolist() == pytest.approx([3, 30, sum(float(rank["norm"]) for rank in ranks)])
        assert torch.equal(found["weight"], ranks[0]["weight"])


def _tell_one_another(kind: str) -> dict[str, Tensor]:
    rank = rank_and_world()[0]
    module, config = _Quadratic(), TrainingConfig(global_batch_size=16)
    engine = TorchEngine(module, config, CPU) if kind == "torch" else DeepSpeedEngine(module, config, CPU, 8)
    told: dict[str, Tensor] = {}

    def say(norm: Tensor) -> Tensor:
        told["norm"] = norm
        return torch.stack([torch.tensor(1.0 + rank), torch.tensor(10.0 + 10 * rank), norm])

    def hear(heard: Tensor) -> Tensor:
        told["heard"] = heard
        return torch.zeros(())

    engine.step(engine.forward(torch.tensor(0.5 + rank)), 1.0, Word(say, hear))
    told["weight"] = torch.cat([value.detach().reshape(-1) for value in module.state_dict().values()])
    return told


def test_alone_gathering_and_summing_change_nothing() -> None:
    assert rank_and_world() == (0, 1)
    rows, values = torch.tensor([3, 1]), torch.randn(2, 4)
    gathered = gather_rows(rows, values)
    assert torch.equal(gathered[0], rows)
    assert torch.equal(gathered[1], values)
    total = sum_over_ranks(values)
    assert torch.equal(total, values)
    total.zero_()
    assert values.abs().sum() > 0


def test_the_learning_rate_warms_up_then_follows_half_a_cosine() -> None:
    training = TrainingConfig(global_batch_size=16, warmup_steps=4, final_learning_rate=0.1)
    warm = [learning_rate_factor(training, step, 0.0) for step in range(6)]
    assert warm == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    falling = [learning_rate_factor(training, 100, progress) for progress in np.linspace(0, 1, 11)]
    assert all(one > other for one, other in itertools.pairwise(falling))
    assert falling[5] == pytest.approx(0.55)
    assert falling[-1] == pytest.approx(0.1)
    assert learning_rate_factor(training, 100, 1.5) == pytest.approx(0.1)
    assert learning_rate_factor(TrainingConfig(warmup_steps=0), 0, 0.0) == 1


def test_rates_of_what_all_particles_share_follow_the_root_of_the_batch_and_warm_up_its_inverse() -> None:
    module, rates = _Quadratic(), {"hash_grid": 0.1, "network": 0.01, "encoder": 0.001}

    def train_at(batch: int | str) -> TrainingConfig:
        return TrainingConfig(global_batch_size=batch, learning_rates=rates, warmup_steps=100)  # type: ignore[arg-type]

    def peaks(batch: int | str) -> list[float]:
        return [group["lr"] for group in parameter_groups(module, train_at(batch))]

    def warm(batch: int) -> float:
        return learning_rate_factor(train_at(batch), 640 // batch - 1, 0.0)

    # At the batch that they are for, and while it is not settled: to the last bit.
    assert peaks(16) == peaks("auto") == [0.1, 0.01, 0.001]
    assert peaks(64) == pytest.approx([0.2, 0.02, 0.001])
    assert peaks(4) == pytest.approx([0.05, 0.005, 0.001])
    # After equally many particles.
    assert warm(16) == warm(64) == warm(4) == 0.4
