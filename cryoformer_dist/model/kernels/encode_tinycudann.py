"""tiny-cuda-nn as a backend of the hash grid: optional, loaded only where a configuration names it.

Its grid encoding is asked to work on our table, which lies in memory as its own parameters do. It computes in float32
here, but adds the table's gradient in whatever order the device's atomics come.
"""

import torch
from jaxtyping import Float32
from torch import Tensor

from cryoformer_dist.errors import BackendUnavailableError
from cryoformer_dist.model.grid_layout import GridLayout

_COMMIT = "6ee3546"


def install_recipe(architecture: str) -> str:
    """The command that builds tiny-cuda-nn for GPUs of a compute capability, 90 for an H100.

    With setuptools 82 its build stops at once, and in isolation it does not see torch.
    """
    return (
        f'pip install "setuptools<82" wheel ninja && TCNN_CUDA_ARCHITECTURES={architecture} pip install '
        f'--no-build-isolation "git+https://github.com/NVlabs/tiny-cuda-nn@{_COMMIT}#subdirectory=bindings/torch"'
    )


class TinyCudaNN:
    """Features of the hash grid by ``tinycudann.Encoding``.

    Parameters
    ----------
    layout
        Of the table.
    features
        Per level.

    Raises
    ------
    BackendUnavailableError
        tinycudann is not installed, does not fit this machine, or lays its table out in another way than we know.
    """

    def __init__(self, layout: GridLayout, features: int) -> None:
        try:
            import tinycudann
        except (ImportError, OSError) as error:
            # It raises an OSError where there is no GPU, or none that it was built for.
            raise BackendUnavailableError(
                f"model.hash_grid.backend: tinycudann cannot be loaded ({error}); install it by {install_recipe('90')} "
                "(90 is an H100, 86 an RTX 3090; needs nvcc of the CUDA version that torch was built for), or set it "
                "to triton or torch: their tables are the same"
            ) from error
        self._encoding = tinycudann.Encoding(3, _configuration(layout, features), dtype=torch.float32)
        theirs = self._encoding.params.numel()
        if theirs != layout.entries * features:
            raise BackendUnavailableError(
                f"model.hash_grid.backend: this tinycudann keeps {theirs} parameters where the layout of commit "
                f"{_COMMIT} has {layout.entries * features}; install that commit, or set it to triton"
            )

    def __call__(
        self, table: Float32[Tensor, "entries features"], points: Float32[Tensor, "points 3"], layout: GridLayout
    ) -> Float32[Tensor, "points width"]:
        """As `encode.encode`; the layout is the one it was built for."""
        result: Tensor = torch.func.functional_call(self._encoding, {"params": table.reshape(-1)}, (points,))
        return result


def _configuration(layout: GridLayout, features: int) -> dict[str, str | int | float]:
    return {
        "otype": "HashGrid",
        "n_levels": len(layout.scales),
        "n_features_per_level": features,
        "log2_hashmap_size": layout.table_size.bit_length() - 1,
        "base_resolution": layout.base_resolution,
        "per_level_scale": layout.growth,
        "interpolation": "Linear",
    }
