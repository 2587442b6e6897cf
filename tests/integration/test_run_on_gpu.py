"""Whole runs on a GPU learn what they learn on a CPU, and go on with each other's checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_runs import CPU, Listener, Stop, tiny_config, train

# Full precision, as a CPU has.
_EXACT = {"model.decoder.products": "ieee"}
_SEARCHED = {"dimensions": 2, "linear_dimensions": 2}
RUNS: dict[str, dict[str, Any]] = {
    "searched latents, pose table, coarse passes": {
        "model.latent": _SEARCHED,
        "model.pose.form": "table",
        "training.occupancy": "data",
        "training.occupancy_refresh_epochs": 1,
        "training.coarse_epochs": 1.0,
        "training.coarse_box": 12,
        "training.epochs": 3,
    },
    "encoders": {"model.latent.form": "encoder", "model.pose.form": "encoder_then_table"},
    "encoder that learns the table": {
        "model.latent": {**_SEARCHED, "form": "table_then_encoder", "encoder": {"hidden_layers": 2, "width": 16}},
        "training.distillation_epochs": 1,
    },
    "fourier": {"model.domain": "fourier"},
    "concatenation, rays": {"model.decoder.form": "concatenation", "training.projection": "rays"},
}


# So short a run says nothing about conformations.
@pytest.mark.filterwarnings("ignore::cryoformer_dist.errors.UndecidedLatentsWarning")
@pytest.mark.gpu
@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
def test_a_gpu_learns_what_a_cpu_learns(tiny_store: Path, tmp_path: Path, cuda: str, changes: dict[str, Any]) -> None:
    config = tiny_config(tiny_store, _EXACT | changes)
    losses = [
        [record.loss for record in train(config, tmp_path / device.type, device=device).records]
        for device in (CPU, torch.device(cuda))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


@pytest.mark.gpu
def test_a_run_begun_on_a_gpu_goes_on_on_a_cpu(tiny_store: Path, tmp_path: Path, cuda: str) -> None:
    config = tiny_config(tiny_store, _EXACT)
    whole = train(config, tmp_path / "whole")
    with pytest.raises(Stop):
        train(config, tmp_path / "cut", Listener(stop_at=8), device=torch.device(cuda))
    rest = train(config, tmp_path / "cut")
    assert rest.records[-1].step == whole.records[-1].step
    assert rest.records[-1].loss == pytest.approx(whole.records[-1].loss, rel=1e-2)
