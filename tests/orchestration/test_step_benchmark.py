import torch
from support.tiny_runs import CPU, tiny_config

from cryoformer_dist.initialization.occupancy import sphere
from cryoformer_dist.orchestration.step_benchmark import StepBenchmark, ball


def test_a_rehearsal_trains_network_and_tables() -> None:
    config = tiny_config("none", {"model.pose.form": "table"})  # type: ignore[arg-type]
    rehearsal = StepBenchmark.of(config, ball(16, 0.2), 4, CPU)
    objectives, tables = rehearsal.learner.objectives, rehearsal.learner.tables
    before = [value.clone() for value in (*objectives.parameters(), *(table.values for table in tables.values()))]
    rehearsal.step(0)
    after = [*objectives.parameters(), *(table.values for table in tables.values())]
    assert set(tables) == {"latent", "rotation", "shift_angstrom"}
    assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert rehearsal.images_per_second(0.01) > 0


def test_a_ball_fills_its_share_and_never_leaves_the_sphere() -> None:
    assert abs(float(ball(64, 0.1).float().mean()) - 0.1) < 0.002
    assert torch.equal(ball(16, 1.0), sphere(16))
