"""What a simulation may say: which molecule, how it moves, and how the microscope sees it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cryoformer_dist.config.nuisances import NuisancesConfig
from cryoformer_dist.config.section import PositiveInt, Section

Vector = tuple[float, float, float]
ResidueSelection = Annotated[
    str,
    Field(
        pattern=r"^[^:\s]+(:-?\d+(--?\d+)?)?$",
        description="chain, chain:residue or chain:first-last, as in H:1-230",
    ),
]


class PhantomSource(Section):
    """The built-in antibody-like molecule with one swinging arm; needs no file."""

    kind: Literal["phantom"] = "phantom"
    arc_deg: float = Field(
        100.0, gt=0, le=360, description="how far the arm swings; 360 is a full turn, the state then periodic"
    )


class HingeSource(Section):
    """An atomic model of which one rigid group turns about a hinge."""

    kind: Literal["hinge"]
    model: Path = Field(description="atomic model, .pdb, .cif or .mmcif, also .gz")
    moving: tuple[ResidueSelection, ...] = Field(min_length=1, description="the atoms that turn")
    hinge: tuple[ResidueSelection, ...] = Field((), description="residues whose centre is the pivot")
    hinge_angstrom: Vector | None = Field(
        None, description="the pivot (x, y, z) in the model's frame, instead of hinge"
    )
    axis: Vector | None = Field(
        None,
        description="direction of the axis in the model's frame; left out: where the group collides least",
    )
    start_deg: float = Field(0.0, description="angle of the first state; 0 is the model as it is")
    arc_deg: float = Field(360.0, gt=0, le=360, description="how far the group turns; 360 makes the state periodic")

    @model_validator(mode="after")
    def _one_pivot(self) -> "HingeSource":
        if bool(self.hinge) == (self.hinge_angstrom is not None):
            raise ValueError("name the pivot once: either hinge (residues) or hinge_angstrom (a point)")
        if self.axis is not None and not any(self.axis):
            raise ValueError("axis has no length: give a direction, or leave it out to have one chosen")
        return self


class MorphSource(Section):
    """Two atomic models of the same molecule; atoms common to both move on straight lines between them."""

    kind: Literal["morph"]
    first: Path = Field(description="atomic model of state 0")
    last: Path = Field(description="atomic model of state 1")
    align: bool = Field(True, description="lay the last model onto the first (least squares) before interpolating")
    align_on: tuple[ResidueSelection, ...] = Field(
        (),
        description="residues that are laid onto each other, the core that does not move; all when left out",
    )


class ModelsSource(Section):
    """A path through many models of the same atoms; states between two frames lie on straight lines."""

    kind: Literal["models"]
    path: Path = Field(
        description="multi-model .pdb/.cif, or .npz with coords (frames, atoms, 3) in angstrom and optionally element"
    )


class VolumesSource(Section):
    """Density maps, one per discrete state; only what lies in the sphere inscribed in the box is seen."""

    kind: Literal["volumes"]
    paths: tuple[Path, ...] = Field(min_length=1, description="cubic .mrc maps of one box and voxel size")


Source = Annotated[
    PhantomSource | HingeSource | MorphSource | ModelsSource | VolumesSource, Field(discriminator="kind")
]


class StatesConfig(Section):
    """How the particles are spread over the motion."""

    kind: Literal["continuous", "discrete"] = Field(
        "continuous",
        description="continuous: uniform over the motion; discrete: classes at equal steps along it",
    )
    count: PositiveInt | None = Field(
        None, description="classes (discrete only); left out: one per model or map of the source"
    )
    weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (), description="relative population of each class (discrete only); equal when left out"
    )
    truth_volumes: PositiveInt = Field(
        10,
        description="reference maps of a continuous motion, at bin centres; a discrete set has one per class",
    )

    @model_validator(mode="after")
    def _discrete_only(self) -> "StatesConfig":
        if self.kind == "continuous" and (self.count is not None or self.weights):
            raise ValueError("count and weights belong to discrete states: add kind: discrete")
        if self.weights and sum(self.weights) == 0:
            raise ValueError("weights are all zero: give at least one class some particles")
        return self


class PosesConfig(Section):
    """Where the molecules stand: uniform orientations and shifts, or those of a table."""

    table: Path | None = Field(
        None,
        description=".star, .cs, or .npz with rotation (rows, 3, 3) and shift_angstrom (rows, 2); uniform if left out",
    )
    rows: Literal["in_order", "random"] = Field(
        "in_order", description="in_order: row i for particle i; random: drawn with replacement"
    )
    max_shift_fraction: float = Field(
        0.03,
        ge=0,
        lt=0.5,
        description="largest shift along x and y as a share of the box (uniform; not with a table)",
    )


class MicroscopeConfig(Section):
    """The contrast transfer function: uniform ranges, or the values of a table."""

    apply: bool = Field(True, description="false: an ideal phase plate, CTF 1 everywhere, and the .star says so")
    table: Path | None = Field(
        None,
        description=".star, .cs, or .npz with defocus_u_angstrom, defocus_v_angstrom, defocus_angle_deg "
        "and optionally phase_shift_deg (rows each); ranges if left out",
    )
    rows: Literal["in_order", "random"] = Field("in_order", description="as in poses")
    voltage_kv: float = Field(300.0, gt=0, description="acceleration voltage")
    spherical_aberration_mm: float = Field(2.7, ge=0, description="Cs of the objective lens")
    amplitude_contrast: float = Field(0.1, ge=0, lt=1, description="share of amplitude contrast")
    phase_shift_deg: float = Field(0.0, description="of a phase plate")
    min_defocus_angstrom: float = Field(10_000.0, description="underfocus is positive")
    max_defocus_angstrom: float = Field(30_000.0, description="uniform between the two")
    max_astigmatism_angstrom: float = Field(300.0, ge=0, description="largest difference of defocus U and V")

    @model_validator(mode="after")
    def _ordered(self) -> "MicroscopeConfig":
        if self.min_defocus_angstrom > self.max_defocus_angstrom:
            raise ValueError("min_defocus_angstrom exceeds max_defocus_angstrom: swap them")
        if self.table is not None and not self.apply:
            raise ValueError("a CTF table is of no use with apply: false; leave one out")
        return self


class PerturbationConfig(Section):
    """Errors put on the poses in the .star; the truth keeps the clean ones.

    Of the paper, far off: its section 5.4 writes N(0, 0.1 I) and +-10 px of 128; its mean squared error of .144 is
    ``rotation_variance: 0.047``, with ``shift_pixels: 10``. Of a refinement, near: ``rotation_sd_deg`` and
    ``shift_sd_pixels``.
    """

    rotation_variance: float = Field(
        0.0,
        ge=0,
        description="VARIANCE, not standard deviation, of the Gaussian added to each of the nine entries of "
        "the rotation matrix before it is projected back onto SO(3); 0.1 puts rotations about 20 degrees off",
    )
    shift_pixels: float = Field(
        0.0, ge=0, description="largest error along x and y, uniform, in pixels of reference_box"
    )
    reference_box: PositiveInt = Field(128, description="box in whose pixels shift_pixels counts")
    rotation_sd_deg: float = Field(
        0.0, ge=0, le=60, description="standard deviation of a small rotation about each of three axes (Gaussian)"
    )
    shift_sd_pixels: float = Field(
        0.0, ge=0, description="standard deviation along x and y (Gaussian), in pixels of the written images"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> "PerturbationConfig":
        if self.rotation_variance and self.rotation_sd_deg:
            raise ValueError("rotation_variance and rotation_sd_deg are two kinds of error: set one of them")
        if self.shift_pixels and self.shift_sd_pixels:
            raise ValueError("shift_pixels and shift_sd_pixels are two kinds of error: set one of them")
        return self


class SimulationConfig(Section):
    """A synthetic particle set with known truth."""

    seed: int = Field(0, ge=0, description="states, poses, CTF, noise and errors each draw from a stream of their own")
    noise_seed: int | None = Field(
        None,
        ge=0,
        description="seed of the noise alone, for the same particles with other noise; seed when left out",
    )
    particles: PositiveInt = Field(4000, description="images to make")
    box_size: int = Field(32, ge=8, description="side of the images in pixels, even")
    box_length_angstrom: float = Field(230.0, gt=0, description="side of the images; pixel size = this / box_size")
    source: Source = PhantomSource()
    states: StatesConfig = StatesConfig()
    poses: PosesConfig = PosesConfig()
    ctf: MicroscopeConfig = MicroscopeConfig()
    perturbation: PerturbationConfig = PerturbationConfig()
    nuisances: NuisancesConfig = NuisancesConfig()
    snr: float | None = Field(
        0.1,
        gt=0,
        description="var(signal) / var(noise) of whole CTF-applied images at the simulated box, before contrast and "
        "junk, whatever the noise's colour; null: none",
    )
    snr_box: int | None = Field(
        None,
        ge=8,
        description="box at which images and noise are made before cropping to box_size in Fourier space "
        "(CryoBench: 256)",
    )
    resolution_angstrom: float | None = Field(
        None,
        gt=0,
        description="Gaussian atoms pass 1/e of the amplitude at this resolution (as molmap); "
        "left out: standard deviation 0.55 pixels of the simulated box",
    )
    images_per_stack: PositiveInt = Field(10_000, description="most images in one .mrcs")

    @model_validator(mode="after")
    def _boxes(self) -> "SimulationConfig":
        for name in ("box_size", "snr_box"):
            box = getattr(self, name)
            if box is not None and box % 2:
                raise ValueError(f"{name} is {box}: boxes are even, use {box + 1}")
        if self.simulated_box < self.box_size:
            raise ValueError(f"snr_box must be at least box_size ({self.box_size}): images are cropped, never padded")
        return self

    @model_validator(mode="after")
    def _states_fit_the_source(self) -> "SimulationConfig":
        states = self.states
        if isinstance(self.source, VolumesSource):
            if states.kind != "discrete":
                raise ValueError("maps cannot be interpolated: with source.kind volumes set states.kind: discrete")
            if states.count not in (None, len(self.source.paths)):
                raise ValueError(f"states.count must be the number of maps, {len(self.source.paths)}: leave it out")
        elif states.kind == "discrete" and states.count is None and not isinstance(self.source, ModelsSource):
            raise ValueError(f"states.count is required for discrete states of source.kind {self.source.kind}")
        return self

    @model_validator(mode="after")
    def _nuisances_fit(self) -> "SimulationConfig":
        nuisances = self.nuisances
        if nuisances.views.share and self.poses.table is not None:
            raise ValueError("nuisances.views and poses.table both say where molecules are seen from: leave one out")
        if nuisances.crowd.share and self.states.kind == "discrete":
            raise ValueError("nuisances.crowd is for a continuous motion: crowd classes by states.weights")
        if nuisances.ctf_errors.model_fields_set and not self.ctf.apply:
            raise ValueError("nuisances.ctf_errors is of no use with ctf.apply: false; leave one out")
        if isinstance(self.source, VolumesSource) and any(g.pixel_size_angstrom for g in nuisances.optics_groups):
            raise ValueError("maps are imaged at their own pixel size: leave out pixel_size_angstrom of optics groups")
        if len(nuisances.optics_groups) > self.particles:
            raise ValueError("there are more optics groups than particles")
        return self

    @property
    def simulated_box(self) -> int:
        """Box at which images and noise are made."""
        return self.snr_box or self.box_size

    @property
    def pixel_size_angstrom(self) -> float:
        """Pixel size of the written images."""
        return self.box_length_angstrom / self.box_size

    def with_paths_from(self, folder: Path) -> "SimulationConfig":
        """Return the same simulation with every relative path starting at ``folder``."""
        source: Source = self.source
        changes: dict[str, Path | tuple[Path, ...]] = {}
        for name in type(source).model_fields:
            value = getattr(source, name)
            if isinstance(value, Path):
                changes[name] = folder / value
            elif name == "paths":
                changes[name] = tuple(folder / path for path in value)
        update: dict[str, object] = {"source": source.model_copy(update=changes)}
        for name, section in (("poses", self.poses), ("ctf", self.ctf)):
            if section.table is not None:
                update[name] = section.model_copy(update={"table": folder / section.table})
        return self.model_copy(update=update)
