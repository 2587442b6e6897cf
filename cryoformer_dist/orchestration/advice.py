"""How long training takes on this machine, and which box and how many epochs to begin with."""

from dataclasses import dataclass

import torch

from cryoformer_dist.config.schema import DatasetConfig, RunConfig, TrainingConfig
from cryoformer_dist.errors import CryoFormerError
from cryoformer_dist.orchestration.step_benchmark import StepBenchmark, ball

_BATCH = 16
_OCCUPANCY = 0.1
# The largest boxes whose steps are measured; beyond, time goes with the number of voxels.
_MEASURED_BOX = {"cpu": 64, "cuda": 128}
# To begin with: a first look in minutes to hours, not the last word.
_FIRST_BOX = {"cpu": 64, "cuda": 128}
_IMAGES_SEEN = {"cpu": 120_000, "cuda": 2_000_000}
# How often all are seen.
_FEWEST_EPOCHS, _MOST_EPOCHS = 10, 20
# Searches, first estimates and results take about as long as the steps: 1.1 to 2.9 times in all, where measured.
_WHOLE = 2.0
ERROR_FACTOR = 2
"""An estimate may be wrong by this factor either way."""


@dataclass(frozen=True, slots=True)
class TrainingEstimate:
    """How long a training takes in one process on this machine.

    Attributes
    ----------
    device
        ``cpu`` or ``cuda``.
    images_per_second
        Measured in training steps of the default network, a tenth of the box filled.
    measured_box
        Side of the images that were measured.
    seconds
        Of the whole run, results too.
    """

    device: str
    images_per_second: float
    measured_box: int
    seconds: float

    def __str__(self) -> str:
        place = "GPU" if self.device == "cuda" else "CPU"
        least, most = (_roughly(self.seconds * factor) for factor in (1 / ERROR_FACTOR, ERROR_FACTOR))
        return (
            f"about {_roughly(self.seconds)} on this machine's {place} with one worker, {least} to {most} "
            f"({self.images_per_second:.0f} images/s measured in steps at {self.measured_box} px; searches, first "
            "estimates and results are taken to last as long again)"
        )


def training_device() -> str:
    """``cuda`` where there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def advise_box(source_box: int, device: str) -> int:
    """Box, pixels, to convert to for a first training: even, and never larger than the images."""
    return min(source_box - source_box % 2, _FIRST_BOX[device])


def advise_epochs(particles: int, device: str) -> int:
    """Epochs for a first training: fewer where there are more particles."""
    return min(_MOST_EPOCHS, max(_FEWEST_EPOCHS, -(-_IMAGES_SEEN[device] // particles)))


def estimate_training(box: int, particles: int, epochs: int, seconds: float) -> TrainingEstimate:
    """Measure training steps for about so many seconds, and scale them to a run of the default network.

    Raises
    ------
    CryoFormerError
        If a step cannot be taken here; says why.
    """
    device = training_device()
    measured = min(box, _MEASURED_BOX[device])
    config = RunConfig(dataset=DatasetConfig(store="none"), training=TrainingConfig(engine="torch"))
    try:
        benchmark = StepBenchmark.of(config, ball(measured, _OCCUPANCY), _BATCH, torch.device(device))
        rate = benchmark.images_per_second(seconds)
    except RuntimeError as error:
        raise CryoFormerError(f"no training step on the {device}: {str(error).splitlines()[0]}") from error
    steps = particles * epochs / rate * (box / measured) ** 3
    return TrainingEstimate(device, rate, measured, _WHOLE * steps)


def advise_on(box: int, pixel_size_angstrom: float, particles: int, seconds: float) -> list[str]:
    """Lines for whoever has a store: what its box shows, how many epochs to train, how long that takes.

    Parameters
    ----------
    seconds
        Length of the measurement.
    """
    device = training_device()
    epochs, first = advise_epochs(particles, device), _FIRST_BOX[device]
    finest = (
        f"box {box} at {pixel_size_angstrom:.3g} A a pixel shows nothing finer than {2 * pixel_size_angstrom:.3g} A"
    )
    if box > first:
        finest += f"; for a first look in {(box / first) ** 3:.0f} times less time convert with --box {first}"
    lines = [f"box        {finest}", f"epochs     {epochs} to begin with (training.epochs); more help fine motion"]
    try:
        estimate = estimate_training(box, particles, epochs, seconds)
    except CryoFormerError as error:
        return [*lines, f"training   time unknown: {error}"]
    return [*lines, f"training   {epochs} epochs of {particles} images: {estimate}"]


def _roughly(seconds: float) -> str:
    """A duration to two digits at most."""
    units = (("s", 1), ("min", 60), ("h", 3600))
    for unit, length in units:
        if seconds < 100 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds / 86400:.0f} days"
