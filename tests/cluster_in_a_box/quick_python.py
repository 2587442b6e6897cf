"""Stand-in for the nodes' Python, where it is Slurm that is tested: Ray and the driver answer at once.

A worker's Ray ends by itself some seconds after the head's is gone. The driver works until it is ended; one that is to
resume is done at once. With RAY_FAILS_ONCE in its environment Ray does not start at the first try, on any node, and who
counts the nodes first ends with it.
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

_TRIES = 3


def main(words: list[str]) -> None:
    """Do as the Python that the job script starts."""
    if words[0] == "-c":
        # All nodes are there.
        _fail_once("counting")
    elif words[1].startswith("ray"):
        _be_ray(words)
    else:
        _drive(words)


def _fail_once(what: str) -> None:
    failed = Path(f"/tmp/cf_{os.environ['SLURM_JOB_ID']}/{what}")
    if "RAY_FAILS_ONCE" in os.environ and not failed.exists():
        failed.touch()
        sys.exit(f"Ray: this node timed out, {what}")


def _be_ray(words: list[str]) -> None:
    _fail_once("starting")
    options = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word)
    if "--head" in words:
        with socket.create_server(("", int(options["port"]))) as server:
            while True:
                server.accept()[0].close()
    host, port = options["address"].split(":")
    failures = 0
    while failures < _TRIES:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            failures = 0
        except OSError:
            failures += 1
        time.sleep(0.5)


def _drive(words: list[str]) -> None:
    print("driver", *words[2:], "token", len(os.environ["RAY_AUTH_TOKEN"]), flush=True)
    if "--resume" in words:
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("driver: ended by a signal"))
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1:])
