"""Other programs on the same particles, judged by our own evaluation: one table, and curves over CPU seconds.

Run by hand; see README.md in this folder.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

# Before torch: CPU seconds of one thread are what is compared.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

from cryodrgn_rival import cryodrgn
from judging import judge, table
from linear_rival import linear
from own_run import finished_run, ours
from particle_set import Contender, ParticleSet
from voxel_basis_rival import voxel_basis

from cryoformer_dist.machine import set_threads

RIVALS = ("cryodrgn", "linear", "voxel_basis", "ours")


def main() -> None:
    arguments = _arguments()
    # A killed benchmark must not leave its child training.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    set_threads(1)
    data = ParticleSet.of(arguments.config, arguments.work)
    output = arguments.output or data.folder / "results.json"
    for contender in _contenders(data, arguments):
        if arguments.only != "evaluate":
            print(f"training {contender.name}", file=sys.stderr)
            contender.train(arguments.epochs)
        if arguments.only != "train":
            _merge(output, contender.name, judge(data, contender, arguments.every, arguments.last))
    if output.is_file():
        print(table(json.loads(output.read_text())))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("config", type=Path, help="run file of a simulated set whose store exists")
    parser.add_argument("--run", type=Path, action="append", default=[], help="run of ours, trained elsewhere")
    parser.add_argument("--rival", choices=RIVALS, action="append", default=[], help="may be given more than once")
    parser.add_argument("--epochs", type=int, default=16, help="train until so many are done; what is done is kept")
    parser.add_argument("--width", type=int, default=256, help="of cryoDRGN's networks and of the basis encoder")
    parser.add_argument("--maps", type=int, default=4, help="principal maps of the linear model")
    parser.add_argument("--bases", type=int, default=16, help="voxel bases")
    parser.add_argument("--every", type=int, default=1, help="points of the curve: every so many epochs, and the last")
    parser.add_argument("--last", type=int, help="judge none after this epoch")
    parser.add_argument("--only", choices=("train", "evaluate"), help="one half of the work")
    parser.add_argument("--work", type=Path, help="folder of trainings [rivals/ beside the store]")
    parser.add_argument("--cryodrgn-env", type=Path, help="environment, made if absent [cryodrgn-env in the work]")
    parser.add_argument("--output", type=Path, help="JSON, merged with what it holds [results.json in the work]")
    return parser.parse_args()


def _contenders(data: ParticleSet, arguments: argparse.Namespace) -> list[Contender]:
    environment = (arguments.cryodrgn_env or data.folder / "cryodrgn-env").resolve()
    made = {
        "cryodrgn": lambda: cryodrgn(data, environment, arguments.width),
        "linear": lambda: linear(data, arguments.maps),
        "voxel_basis": lambda: voxel_basis(data, arguments.bases, arguments.width),
        "ours": lambda: ours(data, arguments.epochs),
    }
    return [finished_run(data, run) for run in arguments.run] + [made[name]() for name in arguments.rival]


def _merge(output: Path, name: str, result: dict[str, Any]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(output.read_text()) if output.is_file() else {}
    results[name] = result
    temporary = output.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1))
    temporary.replace(output)


if __name__ == "__main__":
    main()
