"""A tiny run, trained to its end, for what is made of runs here."""

from pathlib import Path

import pytest
from support.tiny_runs import tiny_config, train

from cryoformer_dist.analysis.results import reconstruct_alone
from cryoformer_dist.storage.working_folder import WorkingFolder


@pytest.fixture(scope="package")
def run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exploring") / "tiny"
    train(tiny_config(tiny_store), folder)
    reconstruct_alone(WorkingFolder.on_disk(folder))
    return folder
