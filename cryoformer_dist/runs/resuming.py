"""What of a run's configuration may change when it is resumed."""

from cryoformer_dist.config.schema import RunConfig

MAY_CHANGE = {
    # Whether the store is the same one, its fingerprint says; and of a selection the rows that it names.
    "dataset": ("store", "simulate", "loader", "selection"),
    "training": (
        "epochs",
        "learning_rates",
        "report_every_steps",
        "checkpoint_every_steps",
        "keep_checkpoints",
        "storage_patience_seconds",
        "threads_per_worker",
    ),
}
"""Section to keys; of ``results`` all may change, of ``model`` none."""


def find_refused_changes(earlier: RunConfig, config: RunConfig) -> list[str]:
    """Dotted keys of what has changed though it may not."""
    return [
        f"{section}.{key}"
        for section in ("dataset", "model", "training")
        for key in type(getattr(config, section)).model_fields
        if key not in MAY_CHANGE.get(section, ())
        and getattr(getattr(earlier, section), key) != getattr(getattr(config, section), key)
    ]
