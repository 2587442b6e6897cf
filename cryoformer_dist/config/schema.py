"""What a run file may say: one frozen, closed schema that reads as the manual."""

from typing import Literal

from pydantic import Field, model_validator

from cryoformer_dist.config.section import PositiveInt, Section
from cryoformer_dist.config.simulation import SimulationConfig

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Of a folder in the storage, and nowhere else."""


class HashGridConfig(Section):
    """Multiresolution hash grid, in tiny-cuda-nn's definition (Mueller et al. 2022)."""

    backend: Literal["auto", "torch", "triton", "tinycudann"] = Field(
        "auto",
        description="who encodes points; the table is the same for all. auto: triton on a GPU, torch on a CPU or with "
        "model.kernels: torch, and no other where that one is missing; torch: a constant sparse matrix per lattice, on "
        "any device, bitwise repeatable on a CPU; triton: hashes at every step, on a GPU; tinycudann: the same by "
        "tiny-cuda-nn, installed by hand",
    )
    levels: PositiveInt = Field(8, description="resolution levels (the paper's: 16)")
    features_per_level: PositiveInt = Field(2, description="numbers per grid vertex and level")
    log2_table_size: int = Field(15, ge=4, le=24, description="log2 of the most entries a level may have")
    base_resolution: int = Field(4, ge=2, description="vertices per side of the coarsest level (the paper's: 16)")
    finest_resolution: int | None = Field(
        None,
        ge=2,
        description="vertices per side of the finest level; the box when left out (the paper gives none)",
    )

    @model_validator(mode="after")
    def _features_have_a_kernel(self) -> "HashGridConfig":
        if self.backend in ("triton", "tinycudann") and not self.has_kernels:
            raise ValueError(
                f"features_per_level: {self.features_per_level} is not a power of two, as backend: {self.backend} needs"
            )
        return self

    @property
    def has_kernels(self) -> bool:
        """Whether a GPU's encoders have its number of features: a power of two."""
        return not self.features_per_level & (self.features_per_level - 1)


class DecoderConfig(Section):
    """Query-based deformation transformer (paper, section 3.4); smaller than the paper's, as accurate on our sets."""

    form: Literal["attention", "concatenation"] = Field(
        "attention",
        description="attention: a point attends to the queries; concatenation: an MLP of the point's feature beside "
        "the mean query (an ablation of the paper's Table 2)",
    )
    queries: PositiveInt = Field(16, description="learnable structure queries (the paper's N: 64)")
    channels: PositiveInt = Field(32, description="width of a query (the paper's C: 64)")
    blocks: PositiveInt = Field(3, description="deformation-aware decoder blocks")
    hidden_width: PositiveInt = Field(16, description="hidden layer between hash grid and spatial feature")
    density_width: PositiveInt = Field(32, description="hidden layer between attention and density")
    temperature: float = Field(2.0, gt=0, description="factor on the spatial attention's logits")
    products: Literal["ieee", "tf32", "bf16"] = Field(
        "tf32",
        description="operands of the products between points and queries on a GPU: float32, or rounded to 11 or 8 "
        "bits; sums and everything else are float32",
    )
    density_scale: float = Field(
        0.1, gt=0, description="density units per unit of network output, for images in units of the noise"
    )


class EncoderConfig(Section):
    """MLP image encoder (paper, section 3.2)."""

    hidden_layers: PositiveInt = 10
    width: PositiveInt = 128


class LatentConfig(Section):
    """How a particle's conformation is represented."""

    form: Literal["table", "encoder", "table_then_encoder", "none"] = Field(
        "table",
        description="table: one auto-decoded vector per particle; encoder: the paper's MLP; table_then_encoder: a "
        "table, then an encoder that learns it from projected images and serves unseen particles too; none: one state",
    )
    dimensions: PositiveInt = Field(8, description="length of the latent vector")
    prior: float = Field(
        1.0, ge=0, description="weight of the Gaussian prior; 1 is maximum a posteriori for unit noise"
    )
    start: Literal["linear", "random"] = Field(
        "linear", description="table only; linear: coordinates of a linear model of the images; random: the prior"
    )
    linear_dimensions: PositiveInt = Field(
        8, description="latent dimensions that the linear model starts; the others start near zero"
    )
    refinement: Literal["search", "gradient"] = Field(
        "search",
        description="table only; search: after every epoch each particle is compared with conformations all along the "
        "latent cloud; gradient: by the image loss, step by step",
    )
    encoder: EncoderConfig = EncoderConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "LatentConfig":
        if self.searched and self.start == "random":
            # All maps are alike then, and every search would deal the latents anew.
            raise ValueError("start: random needs refinement: gradient")
        return self

    @property
    def tabulated(self) -> bool:
        """Whether every particle has a row of its own."""
        return self.form in ("table", "table_then_encoder")

    @property
    def searched(self) -> bool:
        """Whether the table is refined by comparing particles with conformations after every epoch."""
        return self.tabulated and self.refinement == "search"

    @property
    def starts_linear(self) -> bool:
        """Whether the table starts from a linear model's coordinates."""
        return self.tabulated and self.start == "linear"

    @property
    def linear_dimensions_used(self) -> int:
        """Coordinates of the linear model that find a place in the table."""
        return min(self.linear_dimensions, self.dimensions)


class PoseConfig(Section):
    """Where poses come from and whether they are refined."""

    form: Literal["given", "posterior", "table", "encoder", "encoder_then_table"] = Field(
        "posterior",
        description="posterior: means near the given ones, found with the latents by every search, as far as all "
        "images together find the given ones in error; without a search of latents as given; given: as in the store; "
        "table: refined per particle; encoder: the paper's MLP; "
        "encoder_then_table: refined per particle from where the encoder puts it",
    )
    start: Literal["search", "given"] = Field(
        "search", description="table only; search: local projection matching around the given poses first; given: none"
    )
    encoder: EncoderConfig = EncoderConfig()

    @property
    def tabulated(self) -> bool:
        """Whether every particle has a row of its own that gradients move."""
        return self.form in ("table", "encoder_then_table")

    @property
    def searched(self) -> bool:
        """Whether the table starts from poses that are searched for around the given ones."""
        return self.form == "table" and self.start == "search"


class ModelConfig(Section):
    """CryoFormer's network."""

    domain: Literal["real", "fourier"] = Field(
        "real",
        description="real: the network is a density; fourier: it is the density's transform, queried on central slices "
        "(an ablation of the paper's Table 2)",
    )
    kernels: Literal["auto", "torch"] = Field(
        "auto",
        description="who computes densities and their projection; auto: Triton on a GPU, torch on a CPU; torch: "
        "everywhere, slower",
    )
    hash_grid: HashGridConfig = HashGridConfig()
    decoder: DecoderConfig = DecoderConfig()
    latent: LatentConfig = LatentConfig()
    pose: PoseConfig = PoseConfig()
    amplitude: Literal["one", "posterior"] = Field(
        "posterior",
        description="posterior: how strong each particle is, by every search of latents; one, and without a search: "
        "all alike",
    )
    junk: Literal["kept", "weighed"] = Field(
        "weighed",
        description="weighed: an image counts as far as it probably shows a particle, by every search of latents; "
        "kept, and without a search: all count alike",
    )

    @property
    def searches_poses(self) -> bool:
        """Whether searches of latents find poses too."""
        return self.latent.searched and self.pose.form == "posterior"

    @property
    def searches_amplitudes(self) -> bool:
        """Whether searches of latents find amplitudes too."""
        return self.latent.searched and self.amplitude == "posterior"

    @property
    def weighs_junk(self) -> bool:
        """Whether searches of latents say how probably an image shows a particle."""
        return self.latent.searched and self.junk == "weighed"

    @property
    def tabulates_poses(self) -> bool:
        """Whether every particle has a pose of its own."""
        return self.pose.tabulated or self.searches_poses

    def encoder(self, on_gpu: bool) -> Literal["torch", "triton", "tinycudann"]:
        """Who encodes points on a GPU, or on a CPU."""
        backend = self.hash_grid.backend
        if backend != "auto":
            return backend
        return "triton" if on_gpu and self.kernels == "auto" else "torch"


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
    loader: Literal["ray", "local", "resident"] = Field(
        "ray",
        description="who reads the store: Ray Data, a thread of the worker, or nobody: the images of a worker's share "
        "stay on its device, or in main memory where a GPU has no room",
    )


class LearningRates(Section):
    """Step sizes at their peak."""

    at_batch: PositiveInt = Field(
        16,
        description="global batch that hash_grid and network are for: at another they are multiplied by the root of "
        "the ratio, and training.warmup_steps are divided by it",
    )
    hash_grid: float = Field(1e-2, gt=0)
    network: float = Field(7e-4, gt=0)
    encoder: float = Field(1e-3, gt=0)
    latent: float = Field(
        0.3,
        gt=0,
        description="latent table refined by gradients, in units of the prior's standard deviation per visit",
    )
    rotation: float = Field(1e-2, gt=0, description="pose table, 6D rotation")
    shift_angstrom: float = Field(0.5, gt=0, description="pose table, shift, angstrom per visit")


class TrainingConfig(Section):
    """How long and how fast the network learns."""

    seed: int = 0
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
    imitation_steps: int = Field(
        0,
        ge=0,
        description="first steps, which imitate consensus and linear model (latent.start: linear); large batches",
    )
    warmup_steps: int = Field(100, ge=0, description="at a batch of learning_rates.at_batch")
    final_learning_rate: float = Field(
        0.02, ge=0, le=1, description="share of the peak reached by the cosine at the end"
    )
    weight_decay: float = Field(1e-4, ge=0)
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
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    zero_stage: Literal[0, 1, 2] = Field(0, description="DeepSpeed ZeRO stage")
    threads_per_worker: int = Field(0, ge=0, description="CPU threads of a worker; 0 divides the machine evenly")
    report_every_steps: PositiveInt = 50
    checkpoint_every_steps: PositiveInt = 250
    keep_checkpoints: PositiveInt = 2
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
    volumes_per_component: PositiveInt = 9


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
