from pathlib import Path

import ray.train

from cryoformer_dist.errors import ClusterError, StoreError, TrainingError
from cryoformer_dist.orchestration import ray_training


def _worker_failure(*causes: Exception) -> ray.train.WorkerGroupError:
    return ray.train.WorkerGroupError("message", dict(enumerate(causes)))


def test_what_a_worker_said_in_our_words_is_passed_on(tmp_path: Path) -> None:
    ours = StoreError("s.zarr: chunk 3 is damaged; copy it again")
    ours.__cause__ = ValueError("checksum")
    assert ray_training._explain(_worker_failure(RuntimeError("connection closed by peer"), ours), tmp_path) is ours


def test_any_other_loss_of_a_worker_says_how_to_go_on(tmp_path: Path) -> None:
    told = ray_training._explain(_worker_failure(MemoryError("out of memory")), tmp_path)
    assert isinstance(told, TrainingError)
    assert "worker 0 failed" in str(told)
    assert "--resume" in str(told)
    controller = ray_training._explain(ray.train.ControllerError(RuntimeError("no node")), tmp_path)
    assert isinstance(controller, ClusterError)
    assert "--resume" in str(controller)
