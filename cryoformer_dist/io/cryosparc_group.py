"""Result groups of cryoSPARC: particles whose fields lie in several ``.cs`` files, and the ``.csg`` that names them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from cryoformer_dist.errors import ParticleFormatError
from cryoformer_dist.io.cryosparc import select_cs_rows
from cryoformer_dist.io.cs_fields import load_records
from cryoformer_dist.storage.places import write_whole

_FORMAT = "v4.0.0"


def select_passthrough(passthrough: Path, output: Path, particles: Path) -> None:
    """Copy the rows of a passthrough file that belong to the particles of another ``.cs``, in its own order.

    Parameters
    ----------
    passthrough
        ``..._passthrough_particles.cs`` of the job.
    output
        Where to write, whole or not at all.
    particles
        The particles, joined on ``uid``.

    Raises
    ------
    ParticleFormatError
        If one of the two has no ``uid``, or the passthrough lacks a particle.
    """
    records, wanted = load_records(passthrough), load_records(particles)
    for path, each in ((passthrough, records), (particles, wanted)):
        if "uid" not in (each.dtype.names or ()):
            raise ParticleFormatError(f"{path}: no field uid, so it cannot be joined; export the job again")
    kept = np.isin(records["uid"], wanted["uid"])
    absent = np.setdiff1d(wanted["uid"], records["uid"])
    if len(absent):
        raise ParticleFormatError(
            f"{passthrough}: lacks {len(absent)} of the particles of {particles} (first: uid {absent[0]}); give the "
            "passthrough file of the same job"
        )
    select_cs_rows(passthrough, output, np.flatnonzero(kept))


def write_group(path: Path, files: Sequence[Path]) -> None:
    """Write the ``.csg`` that cryoSPARC's *Import Result Group* takes, for particles in files beside it.

    Parameters
    ----------
    path
        The group file.
    files
        The ``.cs`` that decides which particles, then its passthrough files. What several hold is of the first.
    """
    results: dict[str, str] = {}
    for file in files:
        names = load_records(file).dtype.names or ()
        results |= {each: file.name for each in _list_results(names) if each not in results}
    write_whole(path, _spell(results, len(load_records(files[0]))))


def _list_results(fields: Sequence[str]) -> list[str]:
    """What the fields tell: the part of their names before the slash."""
    return list(dict.fromkeys(field.partition("/")[0] for field in fields if "/" in field))


def _spell(results: Mapping[str, str], particles: int) -> str:
    lines = [f"created: {datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}", "group:"]
    lines += [
        "  description: Particles selected by cryoformer-dist",
        "  name: particles",
        "  title: Selected particles",
    ]
    lines += ["  type: particle", "results:"]
    for name in sorted(results):
        lines += [f"  {name}:", f"    metafile: '>{results[name]}'"]
        lines += [f"    num_items: {particles}", f"    type: particle.{name}"]
    return "\n".join([*lines, f"version: {_FORMAT}", ""])
