"""Every exception and warning a user may meet.

Each error is also the builtin a caller would guess, takes one message (errors cross process borders, where an
``__init__`` with more arguments breaks unpickling) and says what is wrong, where, and what to do.
"""


class CryoFormerError(Exception):
    """Base of all errors that the command line prints as one line."""


class ConfigError(CryoFormerError, ValueError):
    """A run, cluster or simulation file says something that cannot be."""


class ParticleFormatError(CryoFormerError, ValueError):
    """A particle file of another program (.star, .cs, .mrcs, .pkl) cannot be used as it is."""


class StoreError(CryoFormerError, ValueError):
    """A particle store is damaged, unfinished, of another schema, or unfit for the request."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no particle store at the given place."""


class SelectionError(CryoFormerError, ValueError):
    """A selection of particles cannot be made, read, or written for another program."""


class ExplorationError(CryoFormerError, ValueError):
    """Latents, particles or a path that are to be shown are not of this run, or cannot be had."""


class NoPathError(ExplorationError):
    """No chain of neighbours leads from one latent to another."""


class StorageError(CryoFormerError, OSError):
    """An object store cannot be reached, or refuses what is asked of it."""


class InUseError(CryoFormerError, RuntimeError):
    """Somebody else writes to the same store, run directory or launch."""


class CheckpointError(CryoFormerError, RuntimeError):
    """A checkpoint cannot be written or read back."""


class CheckpointNotWrittenError(CheckpointError):
    """Storage stayed full or away for too long, or refuses for good; all ranks of a run meet this together."""


class DamagedCheckpointError(CheckpointError):
    """A file of a checkpoint is not what was written."""


class NoWholeCheckpointError(CheckpointError):
    """All checkpoints of a run are damaged; all ranks of a run meet this together."""


class TrainingError(CryoFormerError, RuntimeError):
    """Training cannot go on."""


class RunStopped(CryoFormerError, RuntimeError):
    """A run ended early because its user asked for it; no mistake of anybody's."""


class ClusterError(CryoFormerError, RuntimeError):
    """The cluster cannot run what was asked of it."""


class BackendUnavailableError(CryoFormerError, ImportError):
    """An optional package was asked for by name and cannot be loaded."""


class CryoFormerWarning(UserWarning):
    """Base of all warnings of this package."""


class PixelSizeConflictWarning(CryoFormerWarning):
    """A stack header and the metadata disagree about the pixel size; the metadata wins."""


class AberrationsNotAppliedWarning(CryoFormerWarning):
    """The metadata carry higher-order aberrations that the forward model does not apply."""


class UndecidedLatentsWarning(CryoFormerWarning):
    """Images say next to nothing about which conformation they show: the maps will hardly move."""


class MostlyJunkWarning(CryoFormerWarning):
    """Most images seem to show no particle: either they do, or the maps explain nothing yet."""


class LatentsOtherwiseExplainedWarning(CryoFormerWarning):
    """Something that is no conformation explains the latents: how strong an image is, how or when it was taken."""


class DensityMaskedAwayWarning(CryoFormerWarning):
    """Much of what the model does not explain lies where its occupancy mask allows no density."""


class NoiseDepartureWarning(CryoFormerWarning):
    """What maps leave unexplained has another power than the noise that was measured in the background."""


class RayStartsAgainWarning(CryoFormerWarning):
    """Ray did not come up in time on a busy machine; it is tried once more."""


class RayProcessLostWarning(CryoFormerWarning):
    """A process of Ray's own was lost, with its node perhaps: training is begun again from its newest checkpoint."""


class ClusterUnreachableWarning(CryoFormerWarning):
    """The cluster of an earlier launch does not answer; it is taken to be gone."""


class StorageTroubleWarning(CryoFormerWarning):
    """Storage is full or away; the program waits and tries again."""


class SmallSampleWarning(CryoFormerWarning):
    """A decision was taken from few particles."""


class ImagesElsewhereWarning(CryoFormerWarning):
    """Images that were to stay on a GPU do not fit there; where they are instead is named."""


class CheckpointDamagedWarning(CryoFormerWarning):
    """A checkpoint is not what was written; the one before it is used."""


class TornLogWarning(CryoFormerWarning):
    """The last line of a log was cut by a crash; it is left out."""


class StepLeftOutWarning(CryoFormerWarning):
    """A step would have written numbers that are not finite: it was not taken, and its rows are left out."""


class MaskNotEnlargedWarning(CryoFormerWarning):
    """The data ask for density at more points than a worker has memory for; training goes on with those it has."""


class SlowEncodingWarning(CryoFormerWarning):
    """The hash grid will be evaluated in a way that a GPU spends most of its time on; a faster backend is named."""
