"""The network between the nodes: a bridge in a namespace of its own, which nothing else on this machine is joined to."""

import subprocess
from types import TracebackType

from cluster_in_a_box.node import Node
from cluster_in_a_box.requirements import PATH

_BITS = 24


class Network:
    """A switch that nodes are plugged into; it ends with its process."""

    def __init__(self) -> None:
        # It reads what never comes: it ends when this process does.
        self._switch = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo up; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": PATH},
            start_new_session=True,
        )
        assert self._switch.stdout is not None
        self._switch.stdout.readline()
        self._do("ip", "link", "add", "switch", "type", "bridge")
        self._do("ip", "link", "set", "switch", "up")

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._switch.kill()
        self._switch.wait()
        for pipe in (self._switch.stdin, self._switch.stdout):
            assert pipe is not None
            pipe.close()

    def plug_in(self, node: Node) -> None:
        """Give a node that has just started its address. The port of one that was killed went with it."""
        peer = ["peer", "name", "eth0", "netns", str(node.first_process)]
        self._do("ip", "link", "add", node.name, "type", "veth", *peer)
        self._do("ip", "link", "set", node.name, "master", "switch", "up")
        node.run("ip", "address", "add", f"{node.address}/{_BITS}", "dev", "eth0")
        node.run("ip", "link", "set", "eth0", "up")
        node.run("ip", "link", "set", "lo", "up")

    def cut(self, node: Node) -> None:
        """From now on nothing goes to the node or comes from it; nobody is told."""
        self._do("ip", "link", "set", node.name, "nomaster")

    def mend(self, node: Node) -> None:
        """Undo `cut`."""
        self._do("ip", "link", "set", node.name, "master", "switch")

    def slow_down(self, node: Node, *netem: str) -> None:
        """What the node hears goes through Linux's netem: ``"delay", "1ms", "rate", "1gbit", "loss", "1%"``."""
        self._do("tc", "qdisc", "replace", "dev", node.name, "root", "netem", *netem)

    def _do(self, *command: str) -> None:
        program = ["nsenter", f"--target={self._switch.pid}", "--net", "--", *command]
        done = subprocess.run(program, capture_output=True, text=True, check=False, env={"PATH": PATH}, timeout=30)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
