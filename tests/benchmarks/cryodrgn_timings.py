"""cryoDRGN's own training step, in its own environment, waiting for its turns."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Self

import torch

_SCRIPT = Path(__file__).with_name("cryodrgn_step.py")


class CryoDrgn:
    """A process that takes one step of cryoDRGN whenever it is asked to.

    Parameters
    ----------
    environment
        Where cryoDRGN is installed.
    box, width, particles
        Side of the images, width of its two networks of three layers, images a step.
    device
        Where.
    """

    def __init__(self, environment: Path, box: int, width: int, particles: int, device: torch.device) -> None:
        self.name = f"cryoDRGN {width}"
        self.particles = particles
        command = [environment / "bin" / "python", _SCRIPT, box, width, particles, device.type]
        # Its log goes to the terminal; only answers come through the pipe.
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": ""},
        )
        self.peak_bytes: int | None = self._answer()["peak_bytes"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # The end of its input ends it.
        self._process.communicate()

    def sample(self) -> float:
        """Seconds of a step, in that process."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"cryoDRGN's process ended with status {self._process.wait()}: its log is above")
        answer: dict[str, Any] = json.loads(line)
        return answer
