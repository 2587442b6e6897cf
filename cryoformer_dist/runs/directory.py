"""The folder of a run: what was asked, on which data, with what; and the maps that training starts from."""

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryoformer_dist.config.loading import dump_config, load_config
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.order import Rows
from cryoformer_dist.data.selection import ParticleFile, read_selection, write_selection
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ConfigError, SelectionError, StorageError, StoreError, StoreNotFoundError
from cryoformer_dist.initialization.consensus import Consensus
from cryoformer_dist.initialization.pose_search import PoseSearchResult
from cryoformer_dist.io.mrc import read_volume, write_volume
from cryoformer_dist.physics.fourier import spectrum
from cryoformer_dist.physics.lattice import Lattice
from cryoformer_dist.physics.pose import Pose
from cryoformer_dist.physics.volume import Volume
from cryoformer_dist.runs.layout import (
    CHECKPOINTS,
    CONFIG,
    CONSENSUS,
    FIRST_LATENTS,
    FIRST_MAPS,
    FIRST_POSES,
    GIVEN_SELECTION,
    MANIFEST,
    OCCUPANCY,
    POSE_SEARCH,
    PREPARED,
    RAY_RECORDS,
    SHELL_WEIGHT,
    STAGE_PROGRESS,
)
from cryoformer_dist.runs.manifest import RunManifest, read_manifest, write_manifest
from cryoformer_dist.storage.array_files import read_array, read_arrays
from cryoformer_dist.storage.places import Place, place_at, replaced, write_whole
from cryoformer_dist.storage.working_folder import WorkingFolder, open_working_folder

_LOOK_AGAIN_SECONDS = 1.0
# Checkpoints come and go by themselves, and Ray keeps its own records.
_LEFT_AT_HOME = (CHECKPOINTS, RAY_RECORDS)


def selected_rows(config: RunConfig, store: ParticleStore) -> Rows:
    """Store rows of the half-set, and of the selection, that the run trains on.

    Raises
    ------
    StoreError
        If a half-set is asked for that the store does not have.
    SelectionError
        If the selection is of another particle file, or of none of these particles.
    """
    rows = _rows_of_half(config, store)
    if config.dataset.selection is None:
        return rows
    selection = read_selection(place_at(config.dataset.selection))
    selection.refuse_other_source(ParticleFile.of(store.attributes.source), str(store.path))
    chosen: Rows = rows[np.isin(store.particles().source_row[rows], selection.source_row)]
    if not len(chosen):
        raise SelectionError(
            f"dataset.selection: none of the {len(selection)} particles ({selection}) is among the {len(rows)} of "
            f"{store.path} that are trained on; look at dataset.half and dataset.hold_out"
        )
    return chosen


def _rows_of_half(config: RunConfig, store: ParticleStore) -> Rows:
    half = store.particles().half_set
    seen = len(store) - config.dataset.hold_out
    if seen <= 0:
        raise StoreError(
            f"{store.path}: dataset.hold_out {config.dataset.hold_out} leaves none of {len(store)} particles"
        )
    if config.dataset.half == "both":
        return np.arange(seen)
    rows = np.flatnonzero(half[:seen] == config.dataset.half)
    if not len(rows):
        given = (
            f"all particles are in half-set {half.max()}"
            if half.all()
            else "the source has no rlnRandomSubset or alignments3D/split column"
        )
        raise StoreError(
            f"{store.path}: no particle belongs to half-set {config.dataset.half}: {given}; set dataset.half to both"
        )
    return rows


@contextmanager
def open_run_directory(home: str | Place) -> Iterator[WorkingFolder]:
    """A run directory to work in: itself, or a copy of what an object store holds of it, but for checkpoints."""
    with open_working_folder(home, _LEFT_AT_HOME) as run:
        yield run


def send_run(run: WorkingFolder) -> None:
    """Send home what preparation or analysis has written."""
    run.send_changes(_LEFT_AT_HOME, last=MANIFEST)


def holds_run(run: Path) -> bool:
    """Whether a folder holds a run, however far it has come."""
    return (run / MANIFEST).is_file()


def is_prepared(run: Path) -> bool:
    """Whether a folder holds a run and all that its training starts from."""
    if not holds_run(run):
        return False
    model = load_run(run)[0].model
    needed = [OCCUPANCY]
    needed += [FIRST_POSES] if model.pose.searched else []
    needed += [FIRST_LATENTS] if model.latent.starts_linear else []
    return all((run / name).is_file() for name in needed)


def load_run(run: Path) -> tuple[RunConfig, RunManifest]:
    """Configuration and manifest of a run.

    Raises
    ------
    ConfigError
        If the folder holds no run, or one of another version.
    """
    manifest = read_manifest(run)
    config = load_config(run / CONFIG, RunConfig)
    return (config if config.dataset.selection is None else _with_selection(config, run.absolute())), manifest


def _with_selection(config: RunConfig, folder: Path) -> RunConfig:
    """The same run on the copy of its selection that lies in a folder."""
    dataset = config.dataset.model_copy(update={"selection": str(folder / GIVEN_SELECTION)})
    return config.model_copy(update={"dataset": dataset})


def open_run_store(manifest: RunManifest) -> ParticleStore:
    """The store of a run: nobody opens another way what a run was prepared from.

    Raises
    ------
    StoreNotFoundError
        If it is not where the manifest says.
    StoreError
        If another store lies there.
    """
    moved = "name its place as dataset.store in the run file and `train --resume`: that takes it down"
    try:
        store = ParticleStore.open(manifest.store)
    except StoreNotFoundError as error:
        raise StoreNotFoundError(
            f"{manifest.store}: the store of run {manifest.name!r} is not there; if it was moved, {moved}"
        ) from error
    if store.fingerprint != manifest.store_fingerprint:
        raise StoreError(
            f"{manifest.store}: another store than that of run {manifest.name!r} (fingerprint "
            f"{store.fingerprint[:12]}, the run's {manifest.store_fingerprint[:12]}); if its own was moved, {moved}"
        )
    if (manifest.box_size, manifest.pixel_size_angstrom) != (store.box_size, store.pixel_size_angstrom):
        raise ConfigError(
            f"run {manifest.name!r}: its {MANIFEST} is damaged: it says box {manifest.box_size} at "
            f"{manifest.pixel_size_angstrom:g} A, its store has {store.box_size} at {store.pixel_size_angstrom:g} A; "
            "start the run anew under another name"
        )
    return store


def note_store_place(run: Path, store: ParticleStore) -> None:
    """Write down where the store of a run lies now."""
    config, manifest = load_run(run)
    place = str(store.path)
    if manifest.store != place:
        # The manifest is what everybody opens; the configuration is what a person reads.
        write_manifest(run, replace(manifest, store=place))
    if config.dataset.store != place:
        moved = config.dataset.model_copy(update={"store": place})
        rewrite_config(run, config.model_copy(update={"dataset": moved}))


def load_consensus(run: Path) -> Volume:
    """The back-projection of a prepared run's particles."""
    return read_volume(run / CONSENSUS)


def write_shell_weight(run: Path, weight: Float[Tensor, " shells"]) -> None:
    """Keep what each Fourier shell of a run's maps counts for."""
    with replaced(run / SHELL_WEIGHT) as beside, beside.open("wb") as stream:
        np.save(stream, weight.numpy())


def load_shell_weight(run: Path) -> Float[Tensor, " shells"]:
    """What each Fourier shell of a run's maps counts for, at the poses that training starts from."""
    return torch.from_numpy(read_array(run / SHELL_WEIGHT, _made_again(OCCUPANCY)))


def load_lattice(config: RunConfig, run: Path) -> Lattice:
    """The points of a prepared run; those of a checkpoint are in the checkpoint."""
    return Lattice.of(load_mask(run), config.training.jitter_lattices, config.seed)


def load_mask(run: Path) -> Bool[Tensor, "box box box"]:
    """Where a prepared run allows density."""
    return read_volume(run / OCCUPANCY).voxels > 0.5


def write_occupancy(run: Path, mask: Bool[Tensor, "box box box"], voxel_size_angstrom: float) -> Path:
    """Where a run allows density, as a map."""
    path = run / OCCUPANCY
    write_volume(path, Volume(mask.float(), voxel_size_angstrom), ["cryoformer-dist occupancy"])
    return path


def load_spectrum(config: RunConfig, run: Path) -> Tensor | None:
    """Root-mean-square amplitude per Fourier shell of a prepared run's consensus; ``None`` where no model needs it."""
    return None if config.model.domain == "real" else spectrum(load_consensus(run).voxels)


def load_first_latents(run: Path) -> Tensor | None:
    """First latents of a prepared run, if it was prepared with any."""
    path = run / FIRST_LATENTS
    return torch.from_numpy(read_array(path, _made_again(FIRST_LATENTS))) if path.is_file() else None


def load_first_maps(run: Path) -> Float[Tensor, "maps coarse coarse coarse"]:
    """How the map changes with each latent of the linear model, as a prepared run has it."""
    return torch.from_numpy(read_array(run / FIRST_MAPS, _made_again(FIRST_LATENTS)))


def _made_again(last: str) -> str:
    """What to do about a damaged first estimate; ``last`` is the file that says that it was made."""
    return f"remove {last} from the run directory, and --resume makes it again"


def store_at_first_poses(run: Path, store: ParticleStore) -> ParticleStore:
    """The store at the poses that training starts from: those of the search, if the run was prepared with one."""
    path = run / FIRST_POSES
    if not path.is_file():
        return store
    found = read_arrays(path, _made_again(FIRST_POSES))
    pose = Pose(torch.from_numpy(found["rotation"]), torch.from_numpy(found["shift_angstrom"]))
    return store.with_pose(found["rows"], pose)


def write_config(run: Path, config: RunConfig) -> None:
    """Make a run's folder, and write its configuration, with a copy of the selection that it names."""
    given = config.dataset.selection
    selection = None if given is None else read_selection(place_at(given))
    run.mkdir(parents=True, exist_ok=True)
    rewrite_config(run, config)
    for left_over in (*PREPARED, STAGE_PROGRESS):
        # Of a folder that was never finished: this run may ask for less.
        (run / left_over).unlink(missing_ok=True)
    if selection is not None:
        write_selection(run / GIVEN_SELECTION, selection)


def rewrite_config(run: Path, config: RunConfig) -> str:
    """Write a run's configuration anew, once what was left open in it is settled; the file's name."""
    # Relative, as in any run file: the copy lies beside it, wherever that is.
    here = config if config.dataset.selection is None else _with_selection(config, Path())
    write_whole(run / CONFIG, dump_config(here))
    return CONFIG


def discard_run(working: WorkingFolder) -> None:
    """Have a folder hold no run any more that turned out to be impossible; the manifest goes first."""
    working.remove(MANIFEST, CONFIG, *PREPARED, STAGE_PROGRESS)


def wait_for_file(working: WorkingFolder, name: str, patience_seconds: float) -> None:
    """Wait until a file of the run directory, which another rank has written, is seen here too.

    Raises
    ------
    StorageError
        If it is not within so many seconds: network file systems show a node new files late, but not that late.
    """
    give_up = time.monotonic() + patience_seconds
    while not (working.folder / name).is_file():
        working.fetch(*{*PREPARED, name})
        if (working.folder / name).is_file():
            return
        if time.monotonic() >= give_up:
            raise StorageError(
                f"{working.home}: {name} was written by another worker and is not seen on {platform.node()}, not after "
                f"{patience_seconds:g} s; storage must be one that all nodes see"
            )
        time.sleep(_LOOK_AGAIN_SECONDS)


def write_maps(run: Path, consensus: Consensus, mask: Bool[Tensor, "box box box"], pixel_size_angstrom: float) -> None:
    """Consensus map, where there may be density, and what its Fourier shells count for."""
    volume = Volume(consensus.voxels.float().cpu(), pixel_size_angstrom)
    write_volume(run / CONSENSUS, volume, ["cryoformer-dist consensus"])
    write_shell_weight(run, consensus.shell_weight(mask, pixel_size_angstrom))
    # Last: it says that the others are there.
    write_occupancy(run, mask, pixel_size_angstrom)


def write_first_poses(run: Path, rows: Rows, found: PoseSearchResult) -> None:
    """Poses that were found, and whether the search did any good."""
    pose = found.pose
    arrays = {"rotation": pose.rotation.numpy(), "shift_angstrom": pose.shift_angstrom.numpy()}
    summary = {
        "half_map_fsc_at_given_poses": found.agreement_given,
        "half_map_fsc_after_rigid_search": found.agreement_found,
        "given_poses_kept": found.kept,
    }
    write_whole(run / POSE_SEARCH, json.dumps(summary, indent=1))
    # Last: it says that the search is over.
    with replaced(run / FIRST_POSES) as beside, beside.open("wb") as stream:
        np.savez(stream, allow_pickle=False, rows=rows, **arrays)


def write_linear_model(
    run: Path, maps: Float[Tensor, "maps coarse coarse coarse"], latents: Float[Tensor, "particles dimensions"]
) -> None:
    """What training starts from: the change of the map with each latent, and the latents of every row of the store."""
    with replaced(run / FIRST_MAPS) as beside, beside.open("wb") as stream:
        np.save(stream, maps.numpy())
    # Last: they say that the linear model is there.
    with replaced(run / FIRST_LATENTS) as beside, beside.open("wb") as stream:
        np.save(stream, latents.numpy())
