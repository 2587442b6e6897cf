"""The manifest of a run directory: on which data it was prepared, and with what."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ConfigError
from cryoformer_dist.runs.layout import MANIFEST
from cryoformer_dist.storage.places import write_whole
from cryoformer_dist.storage.records import from_json
from cryoformer_dist.versions import decisive_versions

SCHEMA_VERSION = 2
"""Of the run directory and everything in it."""


@dataclass(frozen=True, slots=True)
class RunManifest:
    """What a run was prepared from.

    Attributes
    ----------
    schema_version
        Of the run directory.
    name, seed
        Of its configuration.
    store, store_fingerprint
        Place of the particle store, and the name of its content.
    particles
        That are trained on.
    box_size, pixel_size_angstrom
        Of the store.
    backend, engine
        Hash-grid encoder that the run was prepared for, ``auto`` resolved, and optimiser engine.
    python, versions
        Of the process that prepared the run.
    """

    schema_version: int
    name: str
    seed: int
    store: str
    store_fingerprint: str
    particles: int
    box_size: int
    pixel_size_angstrom: float
    backend: str
    engine: str
    python: str
    versions: Mapping[str, str]

    @staticmethod
    def of(config: RunConfig, store: ParticleStore, particles: int, on_gpu: bool) -> "RunManifest":
        """Manifest of a run that this process prepares, to be trained on a GPU or not."""
        return RunManifest(
            schema_version=SCHEMA_VERSION,
            name=config.name,
            seed=config.seed,
            store=str(store.path),
            store_fingerprint=store.fingerprint,
            particles=particles,
            box_size=store.box_size,
            pixel_size_angstrom=store.pixel_size_angstrom,
            backend=config.model.encoder(on_gpu),
            engine=config.training.engine,
            python=platform.python_version(),
            versions=decisive_versions(),
        )


def write_manifest(run: Path, manifest: RunManifest) -> None:
    """Written last: a folder with a manifest is ready."""
    write_whole(run / MANIFEST, json.dumps(asdict(manifest), indent=1))


def read_manifest(run: Path) -> RunManifest:
    """The manifest of a run directory.

    Raises
    ------
    ConfigError
        If there is none, it is damaged, or another version of the program wrote it.
    """
    path = run / MANIFEST
    if not path.is_file():
        raise ConfigError(f"{run}: not a run directory (no {MANIFEST})")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["schema_version"]
        if version == SCHEMA_VERSION:
            manifest: RunManifest = from_json(RunManifest, values)
            return manifest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: damaged, or not the manifest of a run ({error}); start the run anew under another name"
        ) from error
    raise ConfigError(
        f"{path}: schema {version}, this version of cryoformer-dist reads {SCHEMA_VERSION}; use the version that "
        "wrote it, or start the run anew under another name"
    )
