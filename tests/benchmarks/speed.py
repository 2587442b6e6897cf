"""How fast: kernels, training steps, rivals, loading, two workers. One command, ratios from one run; see README.md.

    python tests/benchmarks/speed.py --device cpu --cryodrgn-env ENV
    python tests/benchmarks/speed.py --device cuda --output speed.json

On a machine with a GPU it needs torch, triton and numpy only.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch: what is compared is one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The repository itself, for a machine where nothing was installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from stand_ins import stand_in_for_absent

STAND_INS = stand_in_for_absent()

from data_path import data_table  # noqa: E402
from kernel_timings import kernel_table  # noqa: E402
from roofline import Peaks, measured_peaks  # noqa: E402
from speed_report import Table, circumstances, write_json  # noqa: E402
from step_timings import step_table  # noqa: E402
from two_workers import workers_table  # noqa: E402

PARTS = ("kernels", "steps", "data", "workers")


def main() -> None:
    arguments = _arguments()
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    where = circumstances(device, 1, STAND_INS)
    print("# Speed\n")
    for name, value in where.items():
        print(f"- {name}: {value}")
    print(flush=True)
    peaks = measured_peaks(device, arguments.quick)
    tables = [_peaks_table(peaks)]
    print(tables[0].markdown(), flush=True)
    for made in _tables(arguments, device, peaks):
        tables.append(made)
        print(made.markdown(), flush=True)
        if arguments.output:
            # After every table: a long run that is cut off leaves what it has.
            write_json(arguments.output, where, tables)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="toy sizes, one round: that it runs, not how fast")
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; may be given more than once")
    parser.add_argument("--box", type=int, action="append", help="boxes of the steps [64; 64, 128, 256 on a GPU]")
    parser.add_argument("--cryodrgn-env", type=Path, help="environment with cryoDRGN; without it, it is skipped")
    parser.add_argument("--store", type=Path, help="particle store for the data path [one of random images is made]")
    parser.add_argument("--output", type=Path, help="JSON of all tables")
    return parser.parse_args()


def _tables(arguments: argparse.Namespace, device: torch.device, peaks: Peaks) -> Iterator[Table]:
    quick = arguments.quick
    boxes = arguments.box or ([16] if quick else [64, 128, 256] if device.type == "cuda" else [64])
    made: dict[str, list[Callable[[], Table]]] = {
        "kernels": [lambda: kernel_table(device, peaks, quick)],
        "steps": [lambda box=box: step_table(box, device, peaks, arguments.cryodrgn_env, quick) for box in boxes],
        "data": [lambda: data_table(arguments.store, quick, STAND_INS)],
        "workers": [lambda: workers_table(device, quick)],
    }
    for part in arguments.only or PARTS:
        for table in made[part]:
            yield table()


def _peaks_table(peaks: Peaks) -> Table:
    rates = {f"{name} GFLOP/s": rate / 1e9 for name, rate in peaks.operations_per_second.items()}
    return Table("Peaks, measured", [{**rates, "copy GB/s": peaks.bytes_per_second / 1e9}])


if __name__ == "__main__":
    main()
