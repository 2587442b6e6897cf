"""The network between the nodes: a bridge in a namespace of its own, joined to nothing else of this machine."""

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from cluster_in_a_box.node import Node
from cluster_in_a_box.requirements import PATH, find_obstacle_to_netem

_BITS = 24
_DELAY_LINE = Path(__file__).with_name("delay_line.py")


class Network:
    """A switch that nodes are plugged into; it ends with its process."""

    def __init__(self) -> None:
        # It reads what never comes: it ends when this process does.
        self._switch = _begin("unshare", "--net", "sh", "-c", "echo ready; exec cat")
        self._delay_lines: list[subprocess.Popen[str]] = []
        self._bridges: dict[str, str] = {}
        self._add_bridge("switch")

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in (*self._delay_lines, self._switch):
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()

    def plug_in(self, node: Node) -> None:
        """Give a node that has just started its address. The port of one that was killed went with it."""
        peer = ["peer", "name", "eth0", "netns", str(node.first_process)]
        self._do("ip", "link", "add", node.name, "type", "veth", *peer)
        self.mend(node)
        self._do("ip", "link", "set", node.name, "up")
        node.run("ip", "address", "add", f"{node.address}/{_BITS}", "dev", "eth0")
        node.run("ip", "link", "set", "eth0", "up")
        node.run("ip", "link", "set", "lo", "up")

    def cut(self, node: Node) -> None:
        """From now on nothing goes to the node or comes from it; nobody is told."""
        self._do("ip", "link", "set", node.name, "nomaster")

    def mend(self, node: Node) -> None:
        """Undo `cut`."""
        self._do("ip", "link", "set", node.name, "master", self._bridges.get(node.name, "switch"))

    def slow_down(self, node: Node, delay_ms: float, gbit_per_second: float, loss: float = 0.0) -> None:
        """What the node hears comes later, at a rate, and some of it not at all: by netem, or by a process of ours.

        Parameters
        ----------
        node
            The node; what it says is delayed where the other hears it.
        delay_ms
            One way.
        gbit_per_second
            Rate.
        loss
            Probability that a packet is lost.
        """
        if find_obstacle_to_netem() is None:
            shape = ["delay", f"{delay_ms}ms", "rate", f"{gbit_per_second}gbit", "loss", f"{100 * loss}%"]
            self._do("tc", "qdisc", "replace", "dev", node.name, "root", "netem", *shape, "limit", "10000")
            return
        taps = [f"{node.name}-switch", f"{node.name}-node"]
        link = {"taps": taps, "delay_seconds": delay_ms / 1e3, "bits_per_second": gbit_per_second * 1e9, "loss": loss}
        program = [sys.executable, "-S", "-E", str(_DELAY_LINE), json.dumps(link)]
        self._delay_lines.append(_begin("nsenter", f"--target={self._switch.pid}", "--net", "--", *program))
        own = f"{node.name}-own"
        self._add_bridge(own)
        for tap, bridge in zip(taps, ("switch", own), strict=True):
            self._do("ip", "link", "set", tap, "master", bridge)
            self._do("ip", "link", "set", tap, "up")
        self._bridges[node.name] = own
        self.mend(node)

    def _add_bridge(self, name: str) -> None:
        self._do("ip", "link", "add", name, "type", "bridge")
        self._do("ip", "link", "set", name, "up")

    def _do(self, *command: str) -> None:
        program = ["nsenter", f"--target={self._switch.pid}", "--net", "--", *command]
        done = subprocess.run(program, capture_output=True, text=True, check=False, env={"PATH": PATH}, timeout=30)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")


def _begin(*command: str) -> "subprocess.Popen[str]":
    """A process that lives until it is told, once it is ready."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"PATH": PATH}, start_new_session=True
    )
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise RuntimeError(f"{' '.join(command)} did not start: it said why on stderr")
    return process
