"""An ssh daemon per node, and one key that opens all of them."""

import subprocess
from pathlib import Path

from cluster_in_a_box.node import HOME, Node
from cluster_in_a_box.requirements import PATH

_CONFIGURATION = """\
HostKey {home}/host_key
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
AuthorizedKeysFile .ssh/authorized_keys
UsePAM no
PrintMotd no
SetEnv PYTHONPATH={repository} PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
"""


def make_key(path: Path, kind: str = "ed25519") -> None:
    """A key without a passphrase, its public half beside it."""
    program = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(path)]
    subprocess.run(program, check=True, env={"PATH": PATH}, timeout=30)


def serve(node: Node, key: Path, repository: Path) -> None:
    """Let whoever has the key log in to a node that is up.

    Parameters
    ----------
    node
        The node.
    key
        The private half; the public one lies beside it.
    repository
        Where the programs of a login find the package.
    """
    home = node.folder / "root"
    (home / ".ssh").mkdir(mode=0o700)
    (home / ".ssh" / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
    make_key(home / "host_key")
    (home / "sshd_config").write_text(_CONFIGURATION.format(home=HOME, repository=repository))
    node.run("mkdir", "-m", "755", "/run/sshd")
    # It must be called by its full path: it starts itself again for each login.
    node.begin("/usr/sbin/sshd", "-D", "-e", "-f", f"{HOME}/sshd_config", log=node.folder / "sshd.log")
