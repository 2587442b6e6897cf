"""What a machine needs for a cluster in a box, and what of it is missing here."""

import os
import shutil
import subprocess

INSTALL = "apt-get install --no-install-recommends slurm-wlm munge openssh-server rsync iproute2 util-linux"
INSTALL_ACCOUNTING = "apt-get install --no-install-recommends slurmdbd mariadb-server-core"
_PROGRAMS = ("unshare", "nsenter", "ip", "tc", "munged", "slurmctld", "slurmd", "sbatch", "sshd", "ssh-keygen", "rsync")
# Where Debian keeps daemons, which the PATH of a user may leave out.
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def find_obstacle() -> str | None:
    """What keeps a cluster from being made here, in words, or nothing."""
    if os.geteuid() != 0:
        return "a cluster in a box needs root: it makes namespaces"
    if missing := [program for program in _PROGRAMS if shutil.which(program, path=PATH) is None]:
        return f"not installed: {', '.join(missing)}; on Debian: {INSTALL}"
    # In namespaces that end with the question.
    made = _try_in_a_network(
        "ip link add b0 type bridge; ip link add v0 type veth peer name w0; ip link set v0 master b0"
    )
    return made and f"this kernel lets no bridge and veth be made: {made}"


def find_obstacle_to_accounting() -> str | None:
    """What keeps Slurm from keeping records here, in words, or nothing."""
    missing = [program for program in ("mariadbd", "slurmdbd") if shutil.which(program, path=PATH) is None]
    return f"not installed: {', '.join(missing)}; on Debian: {INSTALL_ACCOUNTING}" if missing else None


def find_obstacle_to_netem() -> str | None:
    """Why the kernel cannot delay packets, in words, or nothing."""
    made = _try_in_a_network("ip link add v0 type veth peer name w0; tc qdisc add dev v0 root netem delay 1ms")
    return made and f"this kernel has no netem (CONFIG_NET_SCH_NETEM): {made}"


def _try_in_a_network(commands: str) -> str | None:
    """What went wrong with commands in a network of their own, in one line."""
    program = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "sh", "-ec", commands]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=30)
    return None if done.returncode == 0 else " ".join(done.stderr.split()) or f"exit code {done.returncode}"
