"""Conversion in parallel: Ray tasks that each own whole shards."""

from collections.abc import Iterator
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from cryoformer_dist.data.convert import (
    ConversionPlan,
    convert_shard,
    converting,
    finish_conversion,
    particles_in,
)
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.errors import ClusterError, CryoFormerError
from cryoformer_dist.orchestration.cluster import running_ray
from cryoformer_dist.progress import Progress


def convert_particles(
    plan: ConversionPlan, workers: int | None = None, progress: Progress | None = None
) -> ParticleStore:
    """Write the shards of a plan with Ray tasks, at most one per worker under way.

    Memory is bounded: a worker holds one shard of stored images and 16 MiB of source pixels. A Ray that is
    initialised already is used and left running.

    Parameters
    ----------
    workers
        Tasks at a time; every CPU of the cluster when ``None``.
    progress
        Called with (particles written, particles in all).

    Raises
    ------
    ParticleFormatError
        If an image cannot be converted; the shards that are done stay, for the next run of the same command.
    ClusterError
        If a worker dies again and again.
    """
    with converting(plan) as pending:
        total = plan.layout.particles
        done = total - particles_in(plan, pending)
        if progress is not None:
            progress(done, total)
        if pending:
            with running_ray(cpus=workers):
                for written in _run_tasks(plan, pending, workers):
                    done += written
                    if progress is not None:
                        progress(done, total)
        return finish_conversion(plan)


def _run_tasks(plan: ConversionPlan, pending: list[int], workers: int | None) -> Iterator[int]:
    """Numbers of particles written, as the tasks end."""
    limit = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    task = ray.remote(num_cpus=1, max_retries=3)(_convert_in_task)
    shared, waiting = ray.put(plan), list(reversed(pending))
    running: list[Any] = []
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                running.append(task.remote(shared, waiting.pop()))
            ended, running = ray.wait(running, num_returns=1)
            yield ray.get(ended[0])
    except RayTaskError as error:
        if isinstance(error.cause, CryoFormerError | OSError):
            raise error.cause from None
        raise
    except RayError as error:
        raise ClusterError(
            f"a conversion worker died ({type(error).__name__}); it may have run out of memory: run the same "
            "command again to continue, with fewer --workers"
        ) from error
    finally:
        for reference in running:
            ray.cancel(reference, force=False)
        if running:
            # No writer may outlive this call: the next one may replace the store.
            ray.wait(running, num_returns=len(running))


def _convert_in_task(plan: ConversionPlan, shard: int) -> int:
    """One shard in a worker process that shares its machine with others of its kind."""
    torch.set_num_threads(1)
    return convert_shard(plan, shard)
