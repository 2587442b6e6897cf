"""A gradient that is not finite at a checkpoint's step costs a run no more than another seed would."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_runs import tiny_config, train, write_set

from cryoformer_dist.errors import StepLeftOutWarning
from cryoformer_dist.runs.checkpoint_choice import latest_checkpoint
from cryoformer_dist.runs.training_log import read_training_log
from cryoformer_dist.training.engine import TorchEngine

SEEDS, EPOCHS, CHECKPOINT_EVERY = (0, 1, 2), 4, 10
CHANGES = {
    "training.epochs": EPOCHS,
    "training.report_every_steps": 5,
    "training.checkpoint_every_steps": CHECKPOINT_EVERY,
}


def _end(run: Path) -> float:
    """Mean loss of the last epoch."""
    records = [record for record in read_training_log(run) if record.stage == "reconstruction"]
    return float(np.mean([record.loss for record in records if record.epoch == EPOCHS - 1]))


@pytest.mark.slow
def test_a_run_that_lost_a_step_at_a_checkpoint_ends_within_a_seed_s_spread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_set(tmp_path, particles=240, box=16, source={"kind": "phantom", "arc_deg": 120}, snr=0.1)
    undisturbed = {}
    for seed in SEEDS:
        train(tiny_config(store, CHANGES | {"training.seed": seed}), tmp_path / f"whole{seed}")
        undisturbed[seed] = _end(tmp_path / f"whole{seed}")
    steps, step = itertools.count(), TorchEngine.step

    def poison(engine: TorchEngine, loss: torch.Tensor, *rest: Any) -> None:
        parameter = next(each for each in engine._module.parameters() if each.requires_grad)
        # A finite loss and a gradient that is not, in the step that the third checkpoint follows.
        spoilt = (parameter - parameter).sqrt().sum() if next(steps) == 3 * CHECKPOINT_EVERY - 1 else 0.0
        step(engine, loss + spoilt, *rest)

    monkeypatch.setattr(TorchEngine, "step", poison)
    disturbed = {}
    for seed in SEEDS:
        steps = itertools.count()
        with pytest.warns(StepLeftOutWarning, match=f"step {3 * CHECKPOINT_EVERY - 1}: .*source rows"):
            train(tiny_config(store, CHANGES | {"training.seed": seed}), tmp_path / f"lost{seed}")
        disturbed[seed] = _end(tmp_path / f"lost{seed}")
        newest = latest_checkpoint(tmp_path / f"lost{seed}")
        assert newest is not None
        assert len(newest.position.left_out) == 12
    spread = max(undisturbed.values()) - min(undisturbed.values())
    print(f"undisturbed {undisturbed}, after a lost step {disturbed}, spread over seeds {spread:.5f}")
    for seed in SEEDS:
        assert abs(disturbed[seed] - undisturbed[seed]) <= spread
