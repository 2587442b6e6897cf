"""Training records with only what a test cares about named."""

from dataclasses import replace

from cryoformer_dist.runs.training_log import TrainingRecord

RECORD = TrainingRecord(
    stage="reconstruction",
    epoch=0,
    epochs=1,
    coarse=False,
    step=1,
    steps=1,
    loss=1.0,
    prior=0.0,
    learning_rate_factor=1.0,
    active_points=100,
    residual_outside=None,
    latent_information_nats=None,
    pose_error_deg=None,
    pose_error_angstrom=None,
    amplitude_spread=None,
    junk_share=None,
    noise_departure=None,
    memory_gib=1.0,
    workers=1,
    slowness=1.0,
    checkpoint_seconds=None,
    particles_per_second=100.0,
    data_wait_share=0.0,
    seconds_per_step=1.0,
    seconds=1.0,
)


def training_record(**values: object) -> TrainingRecord:
    """A record with these values, the others of no account."""
    return replace(RECORD, **values)  # type: ignore[arg-type]
