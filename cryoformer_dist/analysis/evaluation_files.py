"""The verdict on a run as it lies in the run directory: numbers, FSC tables and the maps of the states."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryoformer_dist.analysis.evaluate import Evaluation
from cryoformer_dist.analysis.map_fsc import write_curves
from cryoformer_dist.analysis.reconstruct import remove_series, write_json, write_series

_EVALUATION = "metrics.json"


def read_evaluation(run: Path) -> dict[str, Any]:
    """Contents of metrics.json; empty before the run has been judged."""
    path = run / _EVALUATION
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return content


def write_evaluation(run: Path, evaluation: Evaluation, labels: Sequence[str] = ()) -> Path:
    """Write metrics.json, ``fsc/state_000.csv`` ... and, against a truth, ``volumes/state_000.mrc`` ....

    Returns
    -------
    Path
        The metrics file.
    """
    fsc = run / "fsc"
    fsc.mkdir(parents=True, exist_ok=True)
    for stale in fsc.glob("state_[0-9][0-9][0-9].csv"):
        stale.unlink()
    curves = zip(evaluation.own, evaluation.distant, evaluation.consensus, strict=True)
    for index, (own, distant, consensus) in enumerate(curves):
        named = {"fsc_own": own, "fsc_distant": distant, "fsc_consensus": consensus}
        write_curves(fsc / f"state_{index:03d}.csv", named)
    if evaluation.own:
        write_series(run / "volumes", "state", evaluation.volumes, evaluation.voxel_size_angstrom, labels)
    else:
        remove_series(run / "volumes", "state")
    return write_json(run / _EVALUATION, evaluation.metrics)
