"""An S3-compatible server on loopback, for tests of any folder."""

import itertools
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

from upath import UPath

from cryoformer_dist.storage.places import OBJECT_STORE_OPTIONS

# Told apart from everything else, to be looked for in what is written.
KEY, SECRET = "KEYSEENNOWHERE", "SECRETSEENNOWHERE"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving_objects() -> Iterator[Callable[[], UPath]]:
    """Environment and server; yields what makes a new, empty bucket."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    numbers = itertools.count()

    def new_bucket() -> UPath:
        bucket = UPath(f"s3://bucket-{next(numbers)}", **OBJECT_STORE_OPTIONS)
        bucket.fs.mkdir(bucket.path)
        return bucket

    try:
        _wait_for(f"{url}/moto-api/", server)
        with mock.patch.dict(os.environ, settings):
            yield new_bucket
    finally:
        server.kill()
        server.wait()


def _wait_for(url: str, server: "subprocess.Popen[bytes]", seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, "the object store did not start"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"no object store at {url} within {seconds} s")
