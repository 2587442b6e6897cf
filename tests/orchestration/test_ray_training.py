from collections.abc import Callable
from pathlib import Path

import pytest
import ray.exceptions
import ray.train

from cryoformer_dist.errors import ClusterError, RayProcessLostWarning, StoreError, TrainingError
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


def _failing(times: int, cause: Exception) -> Callable[[], str]:
    """An attempt that fails so many times; then it says how many there were."""
    made = []

    def attempt() -> str:
        made.append(None)
        if len(made) <= times:
            raise ray.train.ControllerError(cause)
        return f"attempt {len(made)}"

    return attempt


def test_training_goes_on_when_ray_loses_a_process_of_its_own() -> None:
    lost = ray.exceptions.ActorUnavailableError("Socket closed", None)
    with pytest.warns(RayProcessLostWarning, match="Socket closed"):
        assert ray_training._repeat_when_ray_is_hit(_failing(2, lost), 2) == "attempt 3"
    with pytest.warns(RayProcessLostWarning), pytest.raises(ray.train.ControllerError):
        ray_training._repeat_when_ray_is_hit(_failing(2, lost), 1)


def test_what_else_stops_ray_is_not_tried_again() -> None:
    with pytest.raises(ray.train.ControllerError, match="no room"):
        ray_training._repeat_when_ray_is_hit(_failing(1, RuntimeError("no room")), 3)
