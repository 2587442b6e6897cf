"""Sizes that the kernels for GPUs come in, known without Triton: a run is refused before anything is prepared."""

from cryoformer_dist.config.schema import ModelConfig
from cryoformer_dist.errors import ConfigError

HIDDEN = 16
SIZES = (16, 32, 64, 128)


def refuse_sizes_without_kernel(model: ModelConfig) -> None:
    """See that a GPU could train a network.

    Raises
    ------
    ConfigError
        If its sizes are none that the kernels have, with what would make them fit.
    """
    decoder, grid = model.decoder, model.hash_grid
    if model.kernels == "auto" and model.domain == "real" and decoder.form == "attention":
        require_kernel(decoder.hidden_width, decoder.queries, decoder.density_width)
    if model.encoder(on_gpu=True) != "torch" and not grid.has_kernels:
        raise ConfigError(
            f"on a GPU model.hash_grid.features_per_level is a power of two, not {grid.features_per_level}; take one, "
            "or set model.hash_grid.backend: torch, which is slower"
        )


def require_kernel(hidden_width: int, queries: int, density_width: int) -> None:
    """Refuse sizes that no tile of the kernels has, as a `ConfigError`."""
    if hidden_width != HIDDEN or queries not in SIZES or density_width not in SIZES:
        raise ConfigError(
            f"on a GPU model.decoder takes a hidden_width of {HIDDEN}, and queries and density_width of "
            f"{', '.join(map(str, SIZES))}, not {hidden_width}, {queries} and {density_width}; take those, or set "
            "model.kernels: torch, which is slower"
        )
