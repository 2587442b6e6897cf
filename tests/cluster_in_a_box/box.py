"""The whole cluster, up and down."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster_in_a_box import ssh
from cluster_in_a_box.network import Network
from cluster_in_a_box.node import REPOSITORY, Node
from cluster_in_a_box.slurm import Slurm

# No address of it is routed anywhere: the network ends at its switch.
_ADDRESSES = "10.11.12.{}"


@dataclass
class Box:
    """What is up.

    Attributes
    ----------
    control
        The node of Slurm's controller, where users log in.
    nodes
        Those that runs train on: ``node1``, ``node2``, ...
    shared
        A folder that all nodes and this machine see at one path.
    key
        Opens every node by ssh, as root.
    """

    network: Network
    control: Node
    nodes: list[Node]
    slurm: Slurm
    shared: Path
    key: Path

    def bring_up(self, node: Node) -> None:
        """Start a node, or one that was killed again, with its network and ssh."""
        node.start()
        self.network.plug_in(node)
        ssh.serve(node, self.key, REPOSITORY)

    def lose(self, node: Node) -> None:
        """Take a node's power, as an administrator tells Slurm who does not want to wait until it notices."""
        node.kill()
        self.control.run("scontrol", "update", f"nodename={node.name}", "state=down", "reason=lost")

    def bring_back(self, node: Node) -> None:
        """Start a node that was lost again, and wait until Slurm takes it."""
        self.bring_up(node)
        self.slurm.start_node(node)
        self.slurm.wait("the node is back", lambda: "down" not in self.slurm.states()[node.name], 90)


@contextmanager
def cluster_in_a_box(nodes: int = 2, cpus: int = 2, accounting: bool = False) -> Iterator[Box]:
    """A cluster for as long as the block lasts; nothing of it is left.

    Parameters
    ----------
    nodes
        Beside the one of Slurm's controller.
    cpus
        Of each, as Slurm is told.
    accounting
        Whether Slurm keeps records of its jobs.
    """
    # Short: sockets of Ray lie below, and paths of sockets are.
    folder = Path(tempfile.mkdtemp(prefix="box_", dir="/tmp"))
    try:
        with Network() as network, ExitStack() as up:
            box = _furnish(folder, network, nodes, cpus, accounting)
            for node in (box.control, *box.nodes):
                up.callback(node.kill)
                box.bring_up(node)
            box.slurm.start()
            yield box
    finally:
        shutil.rmtree(folder)


def _furnish(folder: Path, network: Network, count: int, cpus: int, accounting: bool) -> Box:
    """All that the nodes find when they start."""
    shared, etc = folder / "shared", folder / "etc"
    for place in (shared, etc):
        place.mkdir()
    names = {"control": _ADDRESSES.format(1)} | {f"node{i}": _ADDRESSES.format(10 + i) for i in range(1, count + 1)}
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in names.items())]
    (etc / "hosts").write_text("\n".join(lines) + "\n")
    seen = {name: etc / name for name in ("hosts", "slurm", "munge")}
    made = [Node(name, address, folder / name, shared, seen) for name, address in names.items()]
    ssh.make_key(folder / "key")
    control, *nodes = made
    slurm = Slurm(control, nodes, cpus, etc, accounting)
    return Box(network, control, nodes, slurm, shared, folder / "key")
