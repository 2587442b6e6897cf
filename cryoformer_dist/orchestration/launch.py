"""The whole way: particles, store, training, results."""

from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

from cryoformer_dist.orchestration.cluster import ray_of
from cryoformer_dist.orchestration.environment import token_place
from cryoformer_dist.orchestration.request import Request, Voice
from cryoformer_dist.storage.places import Place


def carry_out(request: Request, voice: Voice) -> Place:
    """Make the run and return its report.

    Raises
    ------
    CryoFormerError
        As its steps do; nothing of what was finished is lost.
    """
    cluster = request.cluster
    if cluster is None:
        from cryoformer_dist.orchestration.steps import train_in_process

        train_in_process(request, voice)
    else:
        # The steps take seconds to import, and Ray's processes take seconds to start.
        with ThreadPoolExecutor(max_workers=1) as meanwhile:
            imported = meanwhile.submit(import_module, "cryoformer_dist.orchestration.steps")
            with ray_of(cluster) as dashboard:
                if dashboard:
                    voice.say(f"Ray dashboard  {dashboard}, its token {token_place()}")
                imported.result().train_on_ray(request, cluster, voice)
    from cryoformer_dist.orchestration.steps import finish

    return finish(request, voice)
