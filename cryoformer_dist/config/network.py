"""What a run file may say of CryoFormer's network: its section `model`."""

from typing import Literal

from pydantic import Field, model_validator

from cryoformer_dist.config.section import PositiveInt, Section


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

    hidden_layers: PositiveInt = Field(10, description="hidden layers")
    width: PositiveInt = Field(128, description="units of each")


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
