"""Stand-in for the nodes' Python: answers at once where Ray and the driver would take their time.

The driver does what DRIVER says: ``exit CODE``, or ``work`` until it is ended, or, when it is to resume, at once done.
"""

import os
import signal
import socket
import sys
import time


def node(arguments: list[str]) -> None:
    """`ray start`."""
    if "--head" in arguments:
        port = next(word.partition("=")[2] for word in arguments if word.startswith("--port="))
        server = socket.create_server(("127.0.0.1", int(port)))
        server.listen()
    while True:
        time.sleep(60)


def driver(arguments: list[str]) -> None:
    print(
        "driver",
        *arguments[2:],
        "at",
        os.environ["RAY_ADDRESS"],
        "token",
        len(os.environ["RAY_AUTH_TOKEN"]),
        flush=True,
    )
    task = os.environ["DRIVER"].split()
    if task[0] == "work" and "--resume" not in arguments:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("driver: ended by a signal"))
        while True:
            time.sleep(60)
    sys.exit(int(task[1]) if task[0] == "exit" else 0)


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[0] == "-c":
        print("nodes asked", *words[2:3])
    elif words[1].startswith("ray"):
        node(words)
    else:
        driver(words)
