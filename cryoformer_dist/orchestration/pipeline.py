"""The whole way: particles, store, training, results."""

from cryoformer_dist.orchestration.cluster import ray_of
from cryoformer_dist.orchestration.environment import token_file
from cryoformer_dist.orchestration.request import Console, Request
from cryoformer_dist.orchestration.steps import finish, train_in_process, train_on_ray
from cryoformer_dist.storage.places import Place


def run_pipeline(request: Request, console: Console) -> Place:
    """Make the run and return its report.

    Raises
    ------
    CryoFormerError
        As its steps do; nothing of what was finished is lost.
    """
    if request.cluster is None:
        train_in_process(request, console)
    else:
        with ray_of(request.cluster) as dashboard:
            if dashboard:
                console.say(f"Ray dashboard  {dashboard}, its token {token_file()}")
            train_on_ray(request, request.cluster, console)
    return finish(request, console)
