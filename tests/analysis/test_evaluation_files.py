import csv

import numpy as np
import pytest
from support.judged_runs import ALONE
from support.rotating_blobs import VOXEL_SIZE_ANGSTROM, blobs, write_run, write_truth

from cryoformer_dist.analysis.evaluate import Evaluation
from cryoformer_dist.analysis.evaluation_files import read_state_curves, write_evaluation
from cryoformer_dist.runs.scores import read_scores


def test_tables_and_maps_agree_with_the_scores(tmp_path):
    run = write_run(tmp_path / "run", write_truth(tmp_path / "truth", 600, 6))
    scores = read_scores(run)
    curves = sorted((run / "fsc").glob("*.csv"))
    assert len(curves) == len(list((run / "volumes").glob("state_*.mrc"))) == 6
    with curves[2].open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    area = np.mean([float(row["fsc_own"]) for row in rows[1:]])
    assert area == pytest.approx(scores.states[2].fsc_area_own, abs=1e-5)
    assert float(rows[4]["frequency_per_angstrom"]) == pytest.approx(4 / (16 * VOXEL_SIZE_ANGSTROM), abs=1e-6)


def test_judging_again_without_a_truth_leaves_nothing_of_the_first_verdict(tmp_path):
    run = write_run(tmp_path / "run", write_truth(tmp_path / "truth", 300, 4))
    assert len(read_state_curves(run).own) == 4
    write_evaluation(run, Evaluation(ALONE, blobs(np.arange(2.0)), VOXEL_SIZE_ANGSTROM))
    assert not list((run / "fsc").iterdir())
    assert not list((run / "volumes").glob("state_*"))
    assert read_scores(run) == ALONE
    assert read_state_curves(run) is None
