"""Up until Ctrl-C."""

import signal

from cluster_in_a_box.box import cluster_in_a_box
from cluster_in_a_box.requirements import find_obstacle

if __name__ == "__main__":
    if obstacle := find_obstacle():
        raise SystemExit(obstacle)
    with cluster_in_a_box() as box:
        for node in (box.control, *box.nodes):
            print(f"{node.name}: nsenter --target={node.first_process} --net --uts --ipc --mount --pid bash")
        print(f"shared: {box.shared}\nCtrl-C ends all of it")
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
