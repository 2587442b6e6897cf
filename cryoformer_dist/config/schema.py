"""What a run file may say: one frozen, closed schema that reads as the manual; `network` holds its section `model`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cryoformer_dist.config.network import DecoderConfig as DecoderConfig
from cryoformer_dist.config.network import EncoderConfig as EncoderConfig
from cryoformer_dist.config.network import HashGridConfig as HashGridConfig
from cryoformer_dist.config.network import LatentConfig as LatentConfig
from cryoformer_dist.config.network import ModelConfig as ModelConfig
from cryoformer_dist.config.network import PoseConfig as PoseConfig
from cryoformer_dist.config.section import PositiveInt, Section
from cryoformer_dist.config.simulation import SimulationConfig

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Of a folder in the storage, and nowhere else."""


class DatasetConfig(Section):
    """Which particles."""

    store: str = Field(description="particle store (.zarr); relative paths start at this file's folder")
    simulate: SimulationConfig | None = Field(
        None, description="make the store by simulation when it does not exist yet"
    )
    hold_out: int = Field(0, ge=0, description="particles kept out of training, for an encoder to be judged on")
    half: Literal["both", 1, 2] = Field("both", description="train on both half-sets or on one")
    selection: str | None = Field(
        None,
        description="train on these particles only: a selection (.json) that `select` has written; relative paths "
        "start at this file's folder",
    )
    loader: Literal["auto", "ray", "local", "resident"] = Field(
        "auto",
        description="who reads the store: Ray Data, a thread of the worker, or nobody: the images of a worker's share "
        "stay on its device, or in main memory where a GPU has no room (resident); auto is resident where memory is "
        "planned to suffice, else ray",
    )


class LearningRates(Section):
    """Step sizes at their peak."""

    at_batch: PositiveInt = Field(
        16,
        description="global batch that hash_grid and network are for: at another they are multiplied by the root of "
        "the ratio, and training.warmup_steps are divided by it",
    )
    hash_grid: float = Field(1e-2, gt=0, description="tables of the hash grid")
    network: float = Field(7e-4, gt=0, description="all other weights that make maps")
    encoder: float = Field(1e-3, gt=0, description="image encoders of latents and of poses")
    latent: float = Field(
        0.3,
        gt=0,
        description="latent table refined by gradients, in units of the prior's standard deviation per visit",
    )
    rotation: float = Field(1e-2, gt=0, description="pose table, 6D rotation")
    shift_angstrom: float = Field(0.5, gt=0, description="pose table, shift, angstrom per visit")


class TrainingConfig(Section):
    """How long and how fast the network learns."""

    seed: int = Field(0, description="of all that is random; the same seed gives the same run")
    epochs: PositiveInt = Field(20, description="passes over the particles in the reconstruction stage")
    coarse_epochs: float = Field(
        0.0, ge=0, description="first passes that compare low frequencies only, on a coarser lattice: much faster"
    )
    coarse_box: int | None = Field(
        None, ge=8, description="box whose frequencies those passes compare, even; half the box when left out"
    )
    pose_pretraining_epochs: int = Field(
        200, ge=0, description="passes in which the orientation encoder learns the given poses (encoder only)"
    )
    pose_encoding_epochs: PositiveInt = Field(
        5, description="passes in which encoder and rigid map learn together (encoder_then_table only)"
    )
    distillation_epochs: PositiveInt = Field(
        10, description="passes in which the encoder learns the table (table_then_encoder only)"
    )
    global_batch_size: PositiveInt | Literal["auto"] = Field(
        64,
        description="particles per step over all workers together; auto: the most that fit, in powers of two, up to 64 "
        "per worker and down to 1500 steps in all",
    )
    learning_rates: LearningRates = LearningRates()
    imitation_steps: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="first steps, which imitate consensus and linear model and need no image (latent.start: linear); "
        "auto: 150 at a batch above learning_rates.at_batch that leaves fewer than 1500 steps in all, else none",
    )
    warmup_steps: int = Field(100, ge=0, description="at a batch of learning_rates.at_batch")
    final_learning_rate: float = Field(
        0.02, ge=0, le=1, description="share of the peak reached by the cosine at the end"
    )
    weight_decay: float = Field(1e-4, ge=0, description="how strongly weights are drawn to zero (AdamW)")
    gradient_clipping: float = Field(0.0, ge=0, description="largest gradient norm; 0 does not clip")
    freeze_pose_epochs: float = Field(1.0, ge=0, description="keep the given poses this long before refining them")
    freeze_latent_epochs: float = Field(
        3.0,
        ge=0,
        description="keep the first latents this long before refining them by gradients; a search keeps them at most "
        "this long, until the maps move",
    )
    projection: Literal["lattice", "rays"] = Field(
        "lattice",
        description="lattice: one set of points for the batch, splatted; rays: the paper's reference, slow",
    )
    jitter_lattices: PositiveInt = Field(4, description="sub-voxel shifted copies of the lattice that steps draw from")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the image encoders' matrix products; all else is float32"
    )
    occupancy: Literal["data", "sphere"] = Field(
        "data",
        description="data: evaluate only points near density seen in a back-projection; sphere: all inside",
    )
    occupancy_refresh_epochs: int = Field(
        2,
        ge=0,
        description="occupancy: data only; after every so many epochs, add the points where the residual of a sample "
        "shows density that was masked away; 0 never",
    )
    mask: str | None = Field(
        None,
        description="your own solvent mask (.mrc), in place of the automatic occupancy: density only where it exceeds "
        "0.5, and it is never enlarged; relative paths start at this file's folder",
    )
    focus_mask: str | None = Field(
        None,
        description="conformations differ only inside this mask (.mrc, a soft edge is kept); outside all share one map",
    )
    engine: Literal["deepspeed", "torch"] = Field(
        "deepspeed", description="who takes the steps: DeepSpeed, or torch alone"
    )
    zero_stage: Literal[0, 1, 2] = Field(
        0, description="DeepSpeed ZeRO: 1 divides the optimiser's state among the workers, 2 the gradients too"
    )
    threads_per_worker: int = Field(0, ge=0, description="CPU threads of a worker; 0 divides the machine evenly")
    report_every_steps: PositiveInt = Field(50, description="steps between two lines of the log")
    checkpoint_every_steps: PositiveInt = Field(
        250, description="steps between two checkpoints, a multiple of report_every_steps"
    )
    keep_checkpoints: PositiveInt = Field(2, description="newest checkpoints that are kept; older ones are removed")
    storage_patience_seconds: float = Field(
        600.0,
        ge=0,
        le=1500,
        description="how long training waits for the run directory's storage when it is full or away; workers wait for "
        "one another at most 1800 s",
    )

    @property
    def batch_ratio(self) -> float:
        """How many times the batch that learning rates are for a step has; 1 as long as the batch is not settled."""
        size = self.global_batch_size
        return 1.0 if size == "auto" else size / self.learning_rates.at_batch

    def threads_for(self, cpus_per_worker: float) -> int:
        """CPU threads of a worker that holds so many CPUs."""
        return self.threads_per_worker or max(1, round(cpus_per_worker))


class ResultsConfig(Section):
    """What is made of the trained network."""

    kmeans_volumes: PositiveInt = Field(10, description="volumes at the centres of latent clusters")
    principal_components: int = Field(2, ge=0, description="axes along which volumes are sampled")
    volumes_per_component: PositiveInt = Field(9, description="volumes along each axis")


class RunConfig(Section):
    """One training run."""

    name: str = Field("run", pattern=RUN_NAME, description="folder name under the storage path")
    dataset: DatasetConfig
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    results: ResultsConfig = ResultsConfig()

    @property
    def seed(self) -> int:
        """Of all that is random in a training; each half-set has its own, or two networks would start alike."""
        return self.training.seed + (0 if self.dataset.half == "both" else self.dataset.half * 10**9)

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        if self.training.checkpoint_every_steps % self.training.report_every_steps:
            # Otherwise a resumed run would report other averages than an uninterrupted one.
            raise ValueError("training.checkpoint_every_steps must be a multiple of training.report_every_steps")
        if self.training.projection == "rays" and self.training.occupancy != "sphere":
            raise ValueError("training.projection: rays needs training.occupancy: sphere")
        self._refuse_masks_without_place()
        whole = self.training.projection == "lattice" and self.model.domain == "real"
        if self.training.coarse_epochs and not whole:
            raise ValueError("training.coarse_epochs needs training.projection: lattice and model.domain: real")
        if (self.training.coarse_box or 0) % 2:
            raise ValueError(f"training.coarse_box: {self.training.coarse_box} is odd; boxes are even")
        if self.model.domain == "fourier" and self.model.decoder.form != "attention":
            raise ValueError("model.domain: fourier needs model.decoder.form: attention")
        return self

    def _refuse_masks_without_place(self) -> None:
        training = self.training
        if self.model.domain == "fourier" and (training.mask or training.focus_mask):
            raise ValueError(
                "training.mask and training.focus_mask need model.domain: real: a transform has no places to mask"
            )
        if training.mask and training.occupancy == "sphere":
            raise ValueError(
                "training.mask takes the place of training.occupancy: leave occupancy out (the rays of "
                "training.projection know no mask but the sphere)"
            )
