"""Stand-in for the `ray` program: a cluster that is a file in the folder RAY_STAND_IN, with one job at most."""

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

KNOWN = Path(os.environ["RAY_STAND_IN"])
LINE, ANSWER = "cryoformer-dist| ", "cryoformer-dist= "


def on_head(words: list[str]) -> None:
    """What the module of this name does there, amid what Ray and ssh print."""
    print("Fetched IP: 10.0.0.1\r")
    job = KNOWN / "job"
    if words[0] == "nodes":
        print(ANSWER + json.dumps({"nodes": int((KNOWN / "nodes").read_text())}))
    elif words[0] == "submit":
        asked = json.loads((KNOWN / "head" / Path(words[1]).name).read_text())
        job.write_text(json.dumps({**asked, "looks": 0, "status": "RUNNING"}))
        print(ANSWER + "{}")
    elif words[0] == "tail":
        lines = [f"{LINE}{word}\r" for word in ("one", "", "three")]
        print("\n".join([*lines, "Shared connection to 10.0.0.1 closed."]))
    elif words[0] == "stop":
        job.write_text(json.dumps({**json.loads(job.read_text()), "status": "STOPPED"}))
        print(ANSWER + "{}")
    else:
        kept = json.loads(job.read_text())
        kept["looks"] += 1
        if kept["status"] == "RUNNING" and kept["looks"] > 1:
            kept["status"] = "FAILED"
        job.write_text(json.dumps(kept))
        code = 2 if kept["status"] == "FAILED" else None
        others = int((KNOWN / "others").exists())
        print(ANSWER + json.dumps({"status": kept["status"], "exit_code": code, "others": others}))


def main(words: list[str]) -> None:
    with open(KNOWN / "calls", "a") as calls:
        calls.write(" ".join(words) + "\n")
    up = KNOWN / "up"
    if words[0] == "up":
        up.touch()
    elif words[0] == "down":
        up.unlink()
    elif not up.exists():
        sys.exit("RuntimeError: Head node of cluster (cryoformer) not found!")
    elif words[0] == "rsync-up":
        shutil.copytree(words[2], KNOWN / "head", dirs_exist_ok=True)
    else:
        on_head(shlex.split(re.sub(r".*providers\.on_head ", "", words[2])))


main(sys.argv[2:])
