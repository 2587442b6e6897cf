"""Tables of the speed benchmark: Markdown for people, JSON for programs, and under which circumstances."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cryoformer_dist.versions import installed_version

_PACKAGES = ("torch", "triton", "numpy", "cryoformer-dist")


@dataclass
class Table:
    """Rows of one comparison, in the order of their columns."""

    title: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """For the terminal and for a document."""
        lines = [f"## {self.title}", ""]
        if self.rows:
            columns = list(self.rows[0])
            lines += [_line(columns), _line(["---"] * len(columns))]
            lines += [_line([_text(row.get(column)) for column in columns]) for row in self.rows]
            lines.append("")
        return "\n".join(lines + [f"{note}\n" for note in self.notes])


def circumstances(device: torch.device, threads: int, stand_ins: Sequence[str]) -> dict[str, Any]:
    """Machine, versions, date: what the numbers hold for."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": threads,
        "load": [round(value, 1) for value in os.getloadavg()],
        "cpus": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: installed_version(name) for name in _PACKAGES},
        "stand_ins": list(stand_ins),
    }


def write_json(path: Path, where: dict[str, Any], tables: Sequence[Table]) -> None:
    """All tables with the circumstances they were measured in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"circumstances": where, "tables": [asdict(table) for table in tables]}, indent=1))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
