"""Stand-in for kubectl: keeps one RayJob in the folder KUBECTL_STAND_IN, one step on at each look."""

import json
import os
import sys
from pathlib import Path

KNOWN = Path(os.environ["KUBECTL_STAND_IN"])
COURSE = [
    {},
    {"jobDeploymentStatus": "Initializing", "jobStatus": ""},
    {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"},
    {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"},
    {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"},
    {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED", "message": "Job finished successfully."},
]


def main(words: list[str]) -> None:
    with open(KNOWN / "calls", "a") as calls:
        calls.write(" ".join(words) + "\n")
    verb = words[1]
    applied, step = KNOWN / "applied", KNOWN / "step"
    if verb == "apply":
        refused = KNOWN / "refused"
        if refused.exists():
            sys.exit(refused.read_text())
        applied.write_text(sys.stdin.read())
        step.write_text("0")
    elif verb == "get" and applied.exists():
        at = int(step.read_text())
        status = COURSE[min(at, len(COURSE) - 1)] if at >= 0 else {"jobDeploymentStatus": "Suspended", "jobStatus": ""}
        print(json.dumps({"kind": "RayJob", "status": status}))
        step.write_text(str(at + 1 if at >= 0 else at))
    elif verb == "logs" and step.read_text() == "3":
        sys.exit("Error from server (BadRequest): container is waiting to start: ContainerCreating")
    elif verb == "logs":
        # Twice: the connection broke after the second line.
        lines = ["one", "two", "three", "four"]
        print("\n".join(lines[:2] if "--follow" in words else lines))
    elif verb == "patch":
        step.write_text("-1")
    elif verb == "delete":
        applied.unlink()


main(sys.argv[2:])
