import gc
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from support.simulated_particles import write_particles

from cryoformer_dist.data.convert import ConversionOptions, ConversionPlan, convert_serially, plan_conversion
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ParticleFormatError, StoreError
from cryoformer_dist.io.particles import ParticleTable
from cryoformer_dist.orchestration.conversion import convert_particles

OPTIONS = ConversionOptions(box_size=24, contrast="light", shard_rows=16, chunk_rows=8)


# Ray drops the handles of its processes while they still end; that they end is its business.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def running_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    gc.collect()


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.usefixtures("running_ray")
def test_parallel_conversion_gives_the_bytes_of_a_serial_one(
    tmp_path: Path,
) -> None:
    table = write_particles(tmp_path / "p", particles=90)
    serial = convert_serially(plan_conversion(table, tmp_path / "serial.zarr", OPTIONS))
    calls: list[tuple[int, int]] = []
    parallel = convert_particles(
        plan_conversion(table, tmp_path / "parallel.zarr", OPTIONS),
        workers=2,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert _bytes(parallel.path) == _bytes(serial.path)
    assert calls[0] == (0, 90)
    assert calls[-1] == (90, 90)
    assert len(calls) == 7
    assert all(earlier[0] < later[0] for earlier, later in itertools.pairwise(calls))


@pytest.mark.usefixtures("running_ray")
def test_a_bad_image_is_named_and_a_ray_that_was_up_stays_up_for_the_continuation(tmp_path: Path) -> None:
    table = write_particles(tmp_path / "p", particles=90)
    path = table.stack_paths[1]
    whole = path.read_bytes()
    number = 7
    start = 1024 + number * 32 * 32 * 4
    nan = np.full(32 * 32, np.nan, "<f4").tobytes()
    path.write_bytes(whole[:start] + nan + whole[start + len(nan) :])
    output = tmp_path / "s.zarr"
    plan = plan_conversion_without_looking(table, output)
    with pytest.raises(ParticleFormatError, match=rf"b\.mrcs: image {number + 1:06d}.*not finite"):
        convert_particles(plan, workers=2)
    with pytest.raises(StoreError, match="unfinished"):
        ParticleStore.open(output)
    path.write_bytes(whole)
    assert len(convert_particles(plan, workers=2)) == 90
    assert ray.is_initialized()


def plan_conversion_without_looking(table: ParticleTable, output: Path) -> ConversionPlan:
    """Plan as if the sample had missed the bad image."""
    good = [row for row in range(len(table)) if not (table.stack[row] == 1 and table.stack_index[row] == 7)]
    plan = plan_conversion(table.select(np.array(good)), output, OPTIONS)
    order = np.random.default_rng(0).permutation(len(table))
    return replace(plan, table=table, order=order, layout=replace(plan.layout, particles=len(table)))
