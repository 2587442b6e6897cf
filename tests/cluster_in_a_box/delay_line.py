"""A link with a delay, a rate and loss where the kernel has no netem: frames of one tap wait here for the other.

It uses nothing but Python's own library, and runs in the network of the switch, between the switch and a node's port.
Frames are as large as the kernel hands them over, up to 64 KiB: a gigabit a second is then some thousand frames.
"""

import errno
import fcntl
import json
import os
import random
import select
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass, field

# Of linux/if_tun.h: a frame comes whole, with a header that says where the kernel may cut it.
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_TAP, _NO_PACKET_INFORMATION, _OFFLOAD_HEADER = 0x0002, 0x1000, 0x4000
_CHECKSUM, _TCP4, _TCP6, _ECN = 0x01, 0x02, 0x04, 0x08
_LARGEST = 66000
# What waits longer than this for the link is dropped, as a switch with a full buffer would.
_QUEUE_SECONDS = 0.05


@dataclass
class Direction:
    """Frames on their way.

    Attributes
    ----------
    source, target
        Open taps.
    delay_seconds
        Of each frame, beyond its own length at the rate.
    bits_per_second
        Of the link.
    loss
        Probability that a frame is lost.
    """

    source: int
    target: int
    delay_seconds: float
    bits_per_second: float
    loss: float
    free_at: float = 0.0
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)

    def take(self) -> None:
        """Read what has come."""
        while True:
            try:
                frame = os.read(self.source, _LARGEST)
            except BlockingIOError:
                return
            now = time.monotonic()
            if self.free_at - now > _QUEUE_SECONDS or random.random() < self.loss:
                continue
            self.free_at = max(now, self.free_at) + 8 * len(frame) / self.bits_per_second
            self.waiting.append((self.free_at + self.delay_seconds, frame))

    def deliver(self) -> None:
        """Send what is due."""
        while self.waiting and self.waiting[0][0] <= time.monotonic():
            try:
                os.write(self.target, self.waiting.popleft()[1])
            except OSError as error:
                # A port that is not up yet takes nothing.
                if error.errno != errno.EIO:
                    raise


def main(described: str) -> None:
    """Join two taps until standard input ends.

    Parameters
    ----------
    described
        JSON: ``taps``, names of the switch's and the node's; ``delay_seconds``, ``bits_per_second`` and ``loss`` of
        what goes to the node. What comes from it passes at once: the other node's line delays it.
    """
    link = json.loads(described)
    switch, node = map(_open_tap, link["taps"])
    there = Direction(switch, node, link["delay_seconds"], link["bits_per_second"], link["loss"])
    back = Direction(node, switch, 0.0, float("inf"), 0.0)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        due = [line.waiting[0][0] - time.monotonic() for line in (there, back) if line.waiting]
        ready, _, _ = select.select([switch, node, sys.stdin], [], [], max(0.0, min(due)) if due else None)
        if sys.stdin in ready:
            return
        for line in (there, back):
            line.take()
            line.deliver()


def _open_tap(name: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = _TAP | _NO_PACKET_INFORMATION | _OFFLOAD_HEADER
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH14x", name.encode(), flags))
    fcntl.ioctl(tap, _TUNSETOFFLOAD, _CHECKSUM | _TCP4 | _TCP6 | _ECN)
    return tap


if __name__ == "__main__":
    main(sys.argv[1])
