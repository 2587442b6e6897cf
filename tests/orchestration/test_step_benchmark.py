from typing import Any

import pytest
import torch
from support.tiny_runs import CPU, tiny_config
from torch.utils._python_dispatch import TorchDispatchMode

from cryoformer_dist.initialization.occupancy import sphere
from cryoformer_dist.orchestration.step_benchmark import StepBenchmark, ball
from cryoformer_dist.physics import ctf
from cryoformer_dist.physics.grids import frequency_grid, half_plane_weight
from cryoformer_dist.physics.projection import _kernel_correction, _slice_points
from cryoformer_dist.training.stages import Stage


def test_a_step_benchmark_trains_network_and_tables() -> None:
    config = tiny_config("none", {"model.pose.form": "table"})  # type: ignore[arg-type]
    benchmark = StepBenchmark.of(config, ball(16, 0.2), 4, CPU)
    objectives, tables = benchmark.learner.objectives, benchmark.learner.tables
    before = [value.clone() for value in (*objectives.parameters(), *(table.values for table in tables.values()))]
    benchmark.step(0)
    after = [*objectives.parameters(), *(table.values for table in tables.values())]
    assert set(tables) == {"latent", "rotation", "shift_angstrom"}
    assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert benchmark.images_per_second(0.01) > 0


def test_a_ball_fills_its_share_and_never_leaves_the_sphere() -> None:
    assert abs(float(ball(64, 0.1).float().mean()) - 0.1) < 0.002
    assert torch.equal(ball(16, 1.0), sphere(16))


class _NeverAsking(TorchDispatchMode):
    """Refuses what a GPU would be waited for: numbers and sizes that only it knows, values that come from the host."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select", "lift_fresh", "equal")

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        name = function.overloadpacket.__name__
        assert name not in self.FORBIDDEN, name
        if name in ("index", "index_put", "index_put_"):
            assert all(index is None or index.dtype != torch.bool for index in arguments[1]), "a mask as index"
        return function(*arguments, **(named or {}))


@pytest.mark.parametrize("form", ["table", "encoder", "table_then_encoder"])
@pytest.mark.parametrize("domain", ["real", "fourier"])
def test_a_step_asks_the_device_for_nothing(form: str, domain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not on a GPU.
    monkeypatch.setattr(ctf, "refuse_impossible_contrast", lambda contrast: None)
    config = tiny_config("none", {"model.latent.form": form, "model.pose.form": "table", "model.domain": domain})  # type: ignore[arg-type]
    benchmark = StepBenchmark.of(config, ball(16, 0.2), 4, CPU)
    benchmark.step(0)
    with _NeverAsking():
        benchmark.step(1)
        if form == "table_then_encoder":
            inputs = benchmark.learner.inputs(Stage("latent_distillation", 1), benchmark.batch, 0.0)
            benchmark.engine.forward("latent_distillation", benchmark.batch, inputs.latent, inputs.pose, 0)


def test_grids_of_a_step_are_made_once_for_a_device() -> None:
    for make in (frequency_grid, half_plane_weight, _kernel_correction, _slice_points):
        assert make(16, CPU) is make(16, CPU)
