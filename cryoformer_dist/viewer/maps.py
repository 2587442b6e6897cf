"""Maps as they are asked for: decoded once, and kept while there is room."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from cryoformer_dist.analysis.trained import TrainedRun
from cryoformer_dist.errors import SelectionError

MOST_AVERAGED = 16
"""Maps of which a selection's mean is made."""
_MOST_BYTES = 2**28
_SEED = 0


@dataclass(slots=True)
class DecodedMaps:
    """Maps of latent vectors; whoever asks for several at a time waits for the others.

    Attributes
    ----------
    trained
        Decodes.
    """

    trained: TrainedRun
    _kept: OrderedDict[bytes, NDArray[np.float32]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, latent: Float[np.ndarray, " dimensions"]) -> Float[np.ndarray, "box box box"]:
        """The map of a latent, in density units.

        Raises
        ------
        SelectionError
            If it has not as many finite numbers as the run's latents.
        """
        vector = np.asarray(latent, dtype=np.float32)
        dimensions = self.trained.latents.shape[1]
        if vector.shape != (dimensions,) or not np.isfinite(vector).all():
            raise SelectionError(f"a latent of this run has {dimensions} finite numbers; give as many")
        key = vector.tobytes()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = next(iter(self.trained.decode_each(vector[None])))
                self._forget_oldest()
            self._kept.move_to_end(key)
            return self._kept[key]

    def mean_of(self, latents: Float[np.ndarray, "particles dimensions"]) -> tuple[NDArray[np.float32], int]:
        """The mean map of at most `MOST_AVERAGED` of some latents, drawn at random, and of how many it is."""
        if not len(latents):
            raise SelectionError("no particle is selected; draw a lasso round some")
        count = min(len(latents), MOST_AVERAGED)
        drawn = np.random.default_rng(_SEED).choice(len(latents), count, replace=False)
        total = np.zeros((self.trained.manifest.box_size,) * 3, np.float32)
        for row in np.sort(drawn):
            total += self.of(latents[row])
        return total / np.float32(count), count

    def _forget_oldest(self) -> None:
        while len(self._kept) > 1 and sum(each.nbytes for each in self._kept.values()) > _MOST_BYTES:
            self._kept.popitem(last=False)
