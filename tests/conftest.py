import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real test files, beside the checkout or named by CRYOFORMER_TEST_DATA; never in the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CRYOFORMER_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no folder of real test files at {folder}; set CRYOFORMER_TEST_DATA")
    return folder
