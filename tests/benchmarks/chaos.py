"""One run on a cluster of raylets, with workers, nodes and the driver killed at random times; run by hand.

It is killed while first estimates are made, in training, and while results are made. The same run is made undisturbed
first. Printed, and written as JSON: every kill, the stage it fell into and the time it cost, and whether the killed run
ended with the same losses and maps, and nothing half-written beside them.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.ray_nodes import RayNodes, ray_nodes
from support.tiny_runs import tiny_settings, write_set

from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.runs.checkpoint import checkpoints
from cryoformer_dist.runs.layout import REPORT
from cryoformer_dist.runs.stage_progress import read_stage_progress
from cryoformer_dist.runs.training_log import read_records_so_far

NODES = 2
# Until a replacement has joined, the workers are up and the first report has come.
RECOVERY_SECONDS = 600
# About as long as first estimates and results of this run take; kills fall into all of them.
ESTIMATE_SECONDS, RESULT_SECONDS = 25, 6


@dataclass(frozen=True)
class Kill:
    """What was killed, in which stage, at which reported step, and seconds until the run was going again.

    It goes again when a later step is reported; before training and after it, when its workers are there.
    """

    what: str
    stage: str
    step: int
    seconds_lost: float


class Run:
    """A run launched on raylets, seen through its run directory."""

    def __init__(self, name: str, work: Path, cluster: RayNodes, cluster_file: Path) -> None:
        self.name, self._cluster, self._file = name, cluster, cluster_file
        self.folder = work / "runs" / name
        self._environment = os.environ | {"XDG_STATE_HOME": str(work / "state")}

    def launch(self, *options: str) -> None:
        self._command("launch", str(self._file), "--name", self.name, "--detach", *options)

    def command(self, *words: str) -> str:
        return self._command(*words, self.name)

    def _command(self, *words: str) -> str:
        command = [sys.executable, "-m", "cryoformer_dist.cli", *words]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def step(self) -> int:
        return max((record.step for record in read_records_so_far(self.folder)), default=0)

    def stage(self) -> str:
        """The stage before or after training that was told of last, or training."""
        stages, records = read_stage_progress(self.folder), read_records_so_far(self.folder)
        if records and records[-1].step < records[-1].steps:
            return "training"
        return stages[-1].stage if stages else "start"

    def has_trained(self) -> bool:
        return any(record.step == record.steps for record in read_records_so_far(self.folder)[-1:])

    def wait_until(self, reached: Callable[[], bool], what: str) -> None:
        start = time.monotonic()
        while not reached() and not (self.folder / REPORT).is_file():
            if time.monotonic() - start > RECOVERY_SECONDS:
                raise SystemExit(f"{self.name}: no {what} for {RECOVERY_SECONDS} s")
            time.sleep(0.1)

    def wait_for_report(self) -> None:
        while "running" in (state := self.command("status")) or "pending" in state:
            time.sleep(2)
        if "succeeded" not in state:
            raise SystemExit(f"{self.name}: {state}{self.command('logs')}")


def kill_worker(run: Run, cluster: RayNodes, chance: random.Random) -> None:
    """One training process, outright."""
    # None while they are being replaced for another reason.
    run.wait_until(lambda: bool(find_workers(cluster)), "workers")
    os.kill(chance.choice(find_workers(cluster)), signal.SIGKILL)


def kill_node(run: Run, cluster: RayNodes, chance: random.Random) -> None:
    """A raylet with all its workers; a new one joins at once."""
    cluster.kill_node(chance.choice(cluster.processes[1:]))
    cluster.start_node(1)


def kill_driver(run: Run, cluster: RayNodes, chance: random.Random) -> None:
    """The process that drives the run; resumed by hand as soon as the cluster says that it failed."""
    (driver,) = (number for number, words in processes(cluster) if {"cryoformer_dist.cli", "drive"} <= set(words))
    os.kill(driver, signal.SIGKILL)
    while "running" in run.command("status"):
        time.sleep(1)
    run.command("resume", "--detach")


def processes(cluster: RayNodes) -> list[tuple[int, list[str]]]:
    """Number and command line of everything that runs on the cluster, and of nothing else on this machine."""
    found = []
    for raylet in cluster.processes:
        for process in psutil.Process(raylet.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append((process.pid, process.cmdline()))
    return found


def find_workers(cluster: RayNodes) -> list[int]:
    """Numbers of the training processes."""
    return sorted(number for number, words in processes(cluster) if any("RayTrainWorker" in word for word in words))


KINDS: dict[str, Callable[[Run, RayNodes, random.Random], None]] = {
    "worker": kill_worker,
    "node": kill_node,
    "driver": kill_driver,
}


def chaos(run: Run, cluster: RayNodes, kills: int, seed: int) -> list[Kill]:
    """Kill at random times until enough: three in ten before training, two in ten after it."""
    chance = random.Random(seed)
    before, after = 3 * kills // 10, 2 * kills // 10
    # The same share of each kind, in random order.
    kinds = [name for _ in range(-(-kills // len(KINDS))) for name in KINDS][:kills]
    chance.shuffle(kinds)
    # Workers end with the maps: a verdict has only its driver.
    kinds = [*kinds[: kills - after], *("driver" if name == "worker" else name for name in kinds[kills - after :])]
    found = []
    run.launch()
    for number, what in enumerate(kinds):
        if number < before:
            run.wait_until(lambda: bool(find_workers(cluster)), "workers")
            time.sleep(chance.uniform(0, ESTIMATE_SECONDS))
        elif number < kills - after:
            run.wait_until(lambda: run.step() > 0, "first report")
            time.sleep(chance.uniform(1, 6))
        else:
            run.wait_until(run.has_trained, "end of training")
            time.sleep(chance.uniform(0, RESULT_SECONDS))
        if (run.folder / REPORT).is_file() and number < kills - after:
            raise SystemExit(f"the run ended after {len(found)} kills; take more --epochs")
        if (run.folder / REPORT).is_file():
            # Made between two kills.
            break
        found.append(kill(what, run, cluster, chance))
    run.wait_for_report()
    return found


def kill(what: str, run: Run, cluster: RayNodes, chance: random.Random) -> Kill:
    """Kill, and wait until the run is going again."""
    step, stage, start = run.step(), run.stage(), time.monotonic()
    KINDS[what](run, cluster, chance)
    if stage == "training":
        # What was reported until then may have been on its way before the kill.
        reported = run.step()
        run.wait_until(lambda: run.step() > reported, "later step")
    else:
        run.wait_until(lambda: bool(find_workers(cluster)), "workers")
    found = Kill(what, stage, step, round(time.monotonic() - start, 1))
    print(f"{what:<7} killed in {stage}, step {step:>5}, going again after {found.seconds_lost:5.1f} s", flush=True)
    return found


def differences(run: Path, other: Path) -> dict[str, float]:
    """Largest differences between two runs: in any record, and in any map relative to the map's largest value."""
    records, others = read_records_so_far(run), read_records_so_far(other)
    if [record.step for record in records] != [record.step for record in others]:
        raise SystemExit(f"{run.name} and {other.name} did not report the same steps")
    loss = max(abs(record.loss - twin.loss) for record, twin in zip(records, others, strict=True))
    maps = sorted(path.relative_to(run) for path in (run / "volumes").rglob("*.mrc"))
    if not maps or maps != sorted(path.relative_to(other) for path in (other / "volumes").rglob("*.mrc")):
        raise SystemExit(f"{run.name} and {other.name} did not write the same maps")
    worst = 0.0
    for name in maps:
        map_here, map_there = read_volume(run / name).voxels.numpy(), read_volume(other / name).voxels.numpy()
        worst = max(worst, float(np.abs(map_here - map_there).max() / np.abs(map_there).max()))
    return {"loss": loss, "maps": worst, "maps_compared": len(maps)}


def half_written(run: Path) -> list[str]:
    """What a kill may have left: temporary names, and checkpoints without their last file."""
    left = [path for path in run.rglob("*") if ".partial" in path.name]
    folders = set((run / "checkpoints").glob("step-*")) - {checkpoint.folder for checkpoint in checkpoints(run)}
    return sorted(str(path.relative_to(run)) for path in [*left, *folders])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for everything; new")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    work = given.work.resolve()
    work.mkdir(parents=True)
    store = write_set(work, particles=2048)
    changes = {
        "dataset.loader": "ray",
        "model.pose.form": "table",
        "model.pose.start": "search",
        "model.latent.start": "linear",
        "training.occupancy": "data",
        "training.global_batch_size": 32,
        "training.epochs": given.epochs,
        "training.report_every_steps": 10,
        "training.checkpoint_every_steps": 20,
    }
    settings = tiny_settings(store, changes)
    (work / "run.yaml").write_text(yaml.safe_dump(settings))
    with ray_nodes(NODES, cpus=1, head_cpus=1) as cluster:
        file = work / "cluster.yaml"
        values = {"provider": "existing", "address": cluster.job_server, "token_file": str(cluster.token_file)}
        values |= {"python": sys.executable, "storage": "runs", "run": "run.yaml", "max_failures": given.kills}
        file.write_text(yaml.safe_dump({**values, "workers": {"count": NODES, "cpus": 0.9}}))
        whole, killed = (Run(name, work, cluster, file) for name in ("whole", "killed"))
        start = time.monotonic()
        whole.launch()
        whole.wait_for_report()
        undisturbed = time.monotonic() - start
        print(f"undisturbed: {undisturbed:.0f} s", flush=True)
        start = time.monotonic()
        kills = chaos(killed, cluster, given.kills, given.seed)
        disturbed = time.monotonic() - start
    result = {
        "kills": [asdict(kill) for kill in kills],
        "seconds_undisturbed": round(undisturbed, 1),
        "seconds_with_kills": round(disturbed, 1),
        "seconds_lost_per_kill": round((disturbed - undisturbed) / len(kills), 1),
        "differences": differences(killed.folder, whole.folder),
        "half_written": half_written(killed.folder),
    }
    (work / "chaos.json").write_text(json.dumps(result, indent=1))
    print(json.dumps({key: value for key, value in result.items() if key != "kills"}, indent=1))


if __name__ == "__main__":
    main()
