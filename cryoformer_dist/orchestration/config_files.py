"""Run files and cluster files with their paths made absolute, from the folder each lies in."""

from pathlib import Path

from cryoformer_dist.config.cluster import ClusterConfig, RayUpCluster
from cryoformer_dist.config.loading import load_cluster, load_config
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.storage.places import placed_from


def read_run_file(path: Path, overrides: list[str]) -> RunConfig:
    """A run file, its paths made absolute from the file's folder."""
    config = load_config(path, RunConfig, overrides)
    folder = path.resolve().parent
    dataset = config.dataset.model_copy(update={"store": placed_from(folder, config.dataset.store)})
    if dataset.selection is not None:
        dataset = dataset.model_copy(update={"selection": placed_from(folder, dataset.selection)})
    if dataset.simulate is not None:
        dataset = dataset.model_copy(update={"simulate": dataset.simulate.with_paths_from(folder)})
    masks = {
        name: placed_from(folder, given)
        for name in ("mask", "focus_mask")
        if (given := getattr(config.training, name)) is not None
    }
    return config.model_copy(update={"dataset": dataset, "training": config.training.model_copy(update=masks)})


def read_cluster_file(path: Path) -> tuple[ClusterConfig, Path | None]:
    """A cluster file with its paths made absolute, and the run file it names."""
    cluster = load_cluster(path)
    folder = path.resolve().parent
    run_file = Path(placed_from(folder, cluster.run)) if cluster.run else None
    changes = {"storage": placed_from(folder, cluster.storage)}
    if cluster.sweep:
        changes["sweep"] = placed_from(folder, cluster.sweep)
    if isinstance(cluster, RayUpCluster) and cluster.config:
        changes["config"] = placed_from(folder, cluster.config)
    return cluster.model_copy(update=changes), run_file
