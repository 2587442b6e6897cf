import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_runs import tiny_config, train

from cryoformer_dist.analysis.results import reconstruct_alone
from cryoformer_dist.storage.working_folder import WorkingFolder
from cryoformer_dist.viewer.answers import ABOUT
from cryoformer_dist.viewer.desk import Desk
from cryoformer_dist.viewer.snapshot import Snapshot, take_snapshot

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_store: Path) -> Path:
    """The smallest run, trained to its end, its maps and latents written."""
    folder = tmp_path_factory.mktemp("viewed") / "run"
    train(tiny_config(tiny_store), folder)
    reconstruct_alone(WorkingFolder.on_disk(folder))
    return folder


@pytest.fixture(scope="session")
def working(run: Path) -> WorkingFolder:
    return WorkingFolder.on_disk(run)


@pytest.fixture(scope="session")
def snapshot(working: WorkingFolder) -> Snapshot:
    return take_snapshot(working)


@pytest.fixture
def desk(working: WorkingFolder, snapshot: Snapshot) -> Desk:
    return Desk(working, snapshot, take_snapshot)


@pytest.fixture(scope="session")
def read_arrays() -> Callable[[bytes, str], tuple[Arrays, dict[str, Any]]]:
    """Arrays of an answer, from its body and what its header says about them, and what else that says."""

    def read(body: bytes, about: str) -> tuple[Arrays, dict[str, Any]]:
        told, start, arrays = json.loads(about), 0, {}
        for each in told.pop("arrays"):
            kind, count = np.dtype(each["dtype"]).newbyteorder("<"), int(np.prod(each["shape"]))
            arrays[each["name"]] = np.frombuffer(body, kind, count, start).reshape(each["shape"])
            start += -(-count * kind.itemsize // 4) * 4
        assert start == len(body)
        return arrays, told

    return read


@pytest.fixture
def ask(desk: Desk, read_arrays: Callable[[bytes, str], tuple[Arrays, dict[str, Any]]]) -> Callable[..., Any]:
    """An answer's arrays and what is told of them, or its JSON."""

    def ask(what: str, /, **asked: Any) -> Any:
        answer = getattr(desk, what)(*([json.dumps(asked)] if asked else []))
        about = answer.headers.get(ABOUT)
        return json.loads(answer.body) if about is None else read_arrays(answer.body, about)

    return ask
