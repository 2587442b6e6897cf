"""An interrupted conversion: what lies where a store is to be written, and whether one may go on with it."""

import json
from dataclasses import asdict, dataclass

from cryoformer_dist.data.contrast import Contrast
from cryoformer_dist.data.noise_measurement import GroupNoise
from cryoformer_dist.data.store import PROGRESS_FOLDER, is_complete, is_store_directory
from cryoformer_dist.data.store_attributes import read_noise
from cryoformer_dist.errors import StoreError
from cryoformer_dist.storage.places import Place, write_whole

PLAN_FILE = "plan.json"


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """What an interrupted conversion needs to go on, kept beside its shards.

    Attributes
    ----------
    fingerprint
        Of the plan.
    contrast, noise
        What was measured; see `Normalisation`.
    """

    fingerprint: str
    contrast: Contrast
    noise: tuple[GroupNoise, ...]


def write_record(output: Place, record: PlanRecord) -> None:
    """Keep a conversion's record beside its shards."""
    write_whole(output / PROGRESS_FOLDER / PLAN_FILE, json.dumps(asdict(record), indent=1))


def find_record(output: Place, fingerprint: str, overwrite: bool) -> PlanRecord | None:
    """Read the record of an interrupted conversion of the same plan; None when a new one may start."""
    if not output.exists():
        return None
    if not is_store_directory(output) and (output.is_file() or any(output.iterdir())):
        raise StoreError(f"{output}: exists and is not a particle store: choose another output")
    record = _read_record(output / PROGRESS_FOLDER / PLAN_FILE)
    if record is not None and record.fingerprint == fingerprint:
        return record
    if overwrite:
        return None
    if is_complete(output):
        raise StoreError(f"{output}: a finished store is there: choose another output, or give --overwrite")
    if record is not None:
        raise StoreError(
            f"{output}: an unfinished conversion of other particles or with other options is there: repeat "
            "its command to continue it, or give --overwrite to begin anew"
        )
    return None


def _read_record(file: Place) -> PlanRecord | None:
    try:
        content = json.loads(file.read_text())
        noise = tuple(read_noise(group) for group in content["noise"])
        return PlanRecord(content["fingerprint"], Contrast(**content["contrast"]), noise)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        # Nobody knows any more whose shards these are: they are written anew.
        return None


def marker(output: Place, shard: int) -> Place:
    """File that says that a shard is on the disk."""
    return output / PROGRESS_FOLDER / f"shard-{shard:05d}.done"
