import numpy as np
import pytest

from cryoformer_dist.analysis.trained import TrainedRun
from cryoformer_dist.errors import SelectionError
from cryoformer_dist.viewer import maps
from cryoformer_dist.viewer.maps import MOST_AVERAGED, DecodedMaps
from cryoformer_dist.viewer.snapshot import Snapshot


@pytest.fixture
def decoded(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Latents that were decoded since."""
    seen: list[np.ndarray] = []
    decode = TrainedRun.decode_each
    monkeypatch.setattr(TrainedRun, "decode_each", lambda run, latents: seen.append(latents) or decode(run, latents))
    return seen


def test_a_map_is_the_runs_own_and_decoded_once(snapshot: Snapshot, decoded: list[np.ndarray]) -> None:
    kept = DecodedMaps(snapshot.trained)
    latent = snapshot.latents[3]
    np.testing.assert_array_equal(kept.of(latent), kept.of(latent.astype(np.float64)))
    assert len(decoded) == 1
    np.testing.assert_array_equal(kept.of(latent), snapshot.trained.decode(latent[None])[0])


def test_the_oldest_make_room(snapshot: Snapshot, decoded: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    kept = DecodedMaps(snapshot.trained)
    monkeypatch.setattr(maps, "_MOST_BYTES", 2 * kept.of(snapshot.latents[0]).nbytes)
    for row in (1, 0, 2, 0):
        kept.of(snapshot.latents[row])
    assert len(decoded) == 3
    kept.of(snapshot.latents[1])
    assert len(decoded) == 4


def test_the_mean_of_few_is_that_of_all_and_of_many_that_of_a_sample(
    snapshot: Snapshot, decoded: list[np.ndarray]
) -> None:
    few = snapshot.latents[:3]
    mean, count = DecodedMaps(snapshot.trained).mean_of(few)
    assert count == 3
    np.testing.assert_allclose(mean, snapshot.trained.decode(few).mean(axis=0), atol=1e-6)
    decoded.clear()
    assert DecodedMaps(snapshot.trained).mean_of(snapshot.latents)[1] == MOST_AVERAGED == len(decoded)
    with pytest.raises(SelectionError, match="no particle is selected; draw"):
        DecodedMaps(snapshot.trained).mean_of(snapshot.latents[:0])


@pytest.mark.parametrize("latent", [[1.0], [1.0, 2.0, 3.0], [np.nan, 0.0]])
def test_a_latent_of_another_run_is_refused(snapshot: Snapshot, latent: list[float]) -> None:
    with pytest.raises(SelectionError, match="has 2 finite numbers"):
        DecodedMaps(snapshot.trained).of(np.array(latent))
