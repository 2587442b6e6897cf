from dataclasses import replace
from pathlib import Path

import pytest
from support.simulated_particles import write_particles

from cryoformer_dist.data.conversion_record import PLAN_FILE, find_record
from cryoformer_dist.data.convert import (
    ConversionOptions,
    begin_conversion,
    convert_serially,
    convert_shard,
    converting,
    plan_conversion,
)
from cryoformer_dist.data.store import PROGRESS_FOLDER, ParticleStore
from cryoformer_dist.errors import InUseError, StoreError
from cryoformer_dist.io.particles import ParticleTable

OPTIONS = ConversionOptions(contrast="light", shard_rows=8, chunk_rows=8)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ParticleTable:
    return write_particles(tmp_path_factory.mktemp("particles"), particles=20, box=16)


@pytest.mark.parametrize("change", [{"seed": 1}, {"contrast": "dark"}])
def test_of_two_conversions_planned_before_either_writes_one_makes_the_store(
    table: ParticleTable, tmp_path: Path, change: dict[str, object]
) -> None:
    one = plan_conversion(table, tmp_path / "s.zarr", OPTIONS)
    other = plan_conversion(table, tmp_path / "s.zarr", replace(OPTIONS, **change))  # type: ignore[arg-type]
    with converting(one) as pending:
        assert pending == [0, 1, 2]
        convert_shard(one, 0)
        with pytest.raises(InUseError, match=r"s\.zarr: process \d+ on .* has been writing there"):
            convert_serially(other)
    # The first was interrupted: what it left is not the second's to go on with.
    with pytest.raises(StoreError, match="with other options is there"):
        convert_serially(other)
    store = convert_serially(one)
    with pytest.raises(StoreError, match="a finished store is there"):
        convert_serially(other)
    store.verify()
    alone = convert_serially(plan_conversion(table, tmp_path / "alone.zarr", OPTIONS))
    assert store.fingerprint == alone.fingerprint
    assert convert_serially(replace(other, overwrite=True)).fingerprint != store.fingerprint


def test_a_record_that_cannot_be_read_is_nobody_s(table: ParticleTable, tmp_path: Path) -> None:
    plan = plan_conversion(table, tmp_path / "s.zarr", OPTIONS)
    begin_conversion(plan)
    convert_shard(plan, 1)
    (plan.output / PROGRESS_FOLDER / PLAN_FILE).write_text('{"fingerprint": ')  # type: ignore[union-attr]
    assert find_record(plan.output, plan.fingerprint, overwrite=False) is None
    assert begin_conversion(plan) == [0, 1, 2]
    assert len(ParticleStore.open(convert_serially(plan).path)) == 20
