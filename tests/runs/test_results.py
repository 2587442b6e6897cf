from pathlib import Path

import numpy as np
import pytest

from cryoformer_dist.errors import CryoFormerError
from cryoformer_dist.runs.results import (
    MadeResults,
    find_of_checkpoint,
    read_made_results,
    read_of_checkpoint,
    write_made_results,
    write_of_checkpoint,
)


def test_arrays_of_one_checkpoint_are_not_those_of_another(tmp_path: Path) -> None:
    assert read_of_checkpoint(tmp_path, "some.npz", 11) is None
    values = {"latents": np.arange(6.0).reshape(3, 2), "rotation": np.eye(3)}
    assert write_of_checkpoint(tmp_path, "some.npz", 11, **values) == "some.npz"
    assert read_of_checkpoint(tmp_path, "some.npz", 12) is None
    found = find_of_checkpoint(tmp_path, "some.npz", 11)
    assert found is not None
    assert found.keys() == values.keys()
    for name, expected in values.items():
        np.testing.assert_array_equal(found[name], expected)
    assert [path.name for path in tmp_path.iterdir()] == ["some.npz"]


def test_results_are_there_once_it_is_said_so(tmp_path: Path) -> None:
    assert read_made_results(tmp_path) is None
    made = MadeResults(11, ("volumes/kmeans_000.mrc", "latent.npz"))
    assert write_made_results(tmp_path, made) == "results.json"
    assert read_made_results(tmp_path) == made
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(CryoFormerError, match=r"results\.json: damaged.*reconstruct"):
        read_made_results(tmp_path)
