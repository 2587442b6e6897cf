"""Stand-in for ssh and rsync: every host is this machine, with a home and ports of its own (SSH_STAND_IN).

A `ray stop` is not passed on: it would end every Ray of this user.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path

SETTINGS = json.loads(os.environ["SSH_STAND_IN"])


def ssh(words: list[str]) -> None:
    rest = iter(words)
    for word in rest:
        if word in ("-o", "-i", "-L"):
            next(rest)
        elif "@" in word:
            break
    command = " ".join(rest)
    with open(SETTINGS["log"], "a") as log:
        log.write(f"{command}\n")
    if "ray stop" in command:
        sys.exit(0)
    for port, own in SETTINGS["ports"].items():
        command = command.replace(port, str(own))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    # As sshd does: the words make one line for the shell of the host.
    os.execvpe("bash", ["bash", "-c", command], {**environment, "HOME": SETTINGS["home"]})


def rsync(words: list[str]) -> None:
    *_, source, target = words
    place = Path(re.sub("^~", SETTINGS["home"], target.partition(":")[2]))
    if Path(source).is_dir():
        shutil.copytree(source, place, dirs_exist_ok=True)
    else:
        shutil.copy(source, place)


if __name__ == "__main__":
    {"ssh": ssh, "rsync": rsync}[sys.argv[1]](sys.argv[2:])
