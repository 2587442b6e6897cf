import csv
import json

import numpy as np
import pytest
from support.rotating_blobs import VOXEL_SIZE_ANGSTROM, blobs, write_run, write_truth

from cryoformer_dist.analysis.evaluate import Evaluation
from cryoformer_dist.analysis.evaluation_files import write_evaluation


def test_evaluation_files_agree_with_the_metrics(tmp_path):
    run = write_run(tmp_path / "run", write_truth(tmp_path / "truth", 600, 6))
    metrics = json.loads((run / "metrics.json").read_text())
    curves = sorted((run / "fsc").glob("*.csv"))
    assert len(curves) == len(list((run / "volumes").glob("state_*.mrc"))) == 6
    with curves[2].open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    area = np.mean([float(row["fsc_own"]) for row in rows[1:]])
    assert area == pytest.approx(metrics["states"][2]["fsc_area_own"], abs=1e-5)
    assert float(rows[4]["frequency_per_angstrom"]) == pytest.approx(4 / (16 * VOXEL_SIZE_ANGSTROM), abs=1e-6)


def test_judging_again_without_a_truth_leaves_nothing_of_the_first_verdict(tmp_path):
    run = write_run(tmp_path / "run", write_truth(tmp_path / "truth", 300, 4))
    write_evaluation(run, Evaluation({"has_truth": False}, blobs(np.arange(2.0)), VOXEL_SIZE_ANGSTROM))
    assert not list((run / "fsc").iterdir())
    assert not list((run / "volumes").glob("state_*"))
    assert json.loads((run / "metrics.json").read_text()) == {"has_truth": False}
