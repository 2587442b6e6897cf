"""Slurm on the nodes: Debian's own programs, with a configuration that needs no cgroups and notices losses quickly."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from cluster_in_a_box.accounting import describe_accounting, start_accounting
from cluster_in_a_box.node import Node

# `low` gives way to `high`; a job that gives way is warned as one whose time is nearly up.
_CONFIGURATION = """\
ClusterName=box
SlurmctldHost={control}
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=/run/slurmctld
SlurmdSpoolDir=/run/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=2,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
KillWait=15
SlurmdTimeout=30
ReturnToService=2
NodeName={nodes} CPUs={cpus} State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
"""
_SECONDS = 60


class Slurm:
    """A controller and a daemon per node.

    Parameters
    ----------
    control
        The node that the controller runs on; jobs are submitted there.
    nodes
        Those that jobs run on.
    cpus
        Of each as Slurm is told, whatever this machine has.
    etc
        Folder of files for the nodes' ``/etc``.
    accounting
        Whether the site keeps records of its jobs.
    """

    def __init__(self, control: Node, nodes: list[Node], cpus: int, etc: Path, accounting: bool) -> None:
        self.control = control
        self._nodes, self._accounting = nodes, accounting
        (etc / "slurm").mkdir()
        names = ",".join(node.name for node in nodes)
        configuration = _CONFIGURATION.format(control=control.name, nodes=names, cpus=cpus)
        if accounting:
            configuration += describe_accounting(control, etc / "slurm")
        (etc / "slurm" / "slurm.conf").write_text(configuration)
        (etc / "munge").mkdir(mode=0o700)
        key = etc / "munge" / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))

    def start(self) -> None:
        """Bring all of it up."""
        _start_munge(self.control)
        if self._accounting:
            start_accounting(self.control)
        self.control.run("mkdir", "/run/slurmctld")
        self.control.begin("slurmctld", "-D", log=self.control.folder / "slurmctld.log")
        for node in self._nodes:
            self.start_node(node)
        self.wait("idle nodes", lambda: self.states() == {node.name: "idle" for node in self._nodes})

    def start_node(self, node: Node) -> None:
        """Let a node that is up take jobs."""
        _start_munge(node)
        node.begin("slurmd", "-D", log=node.folder / "slurmd.log")

    def states(self) -> dict[str, str]:
        """What the controller thinks of each node; empty while it does not answer."""
        told = self.control.attempt("sinfo", "--Node", "--noheader", "--partition=low", "--format=%N %T")
        return dict(line.split() for line in told.stdout.splitlines()) if told.returncode == 0 else {}

    def job(self, number: str) -> dict[str, str]:
        """What the controller knows of a job, such as ``JobState``, ``Restarts`` and ``NodeList``."""
        told = self.control.run("scontrol", "show", "job", "--oneliner", number)
        return dict(re.findall(r"(\S+?)=(\S*)", told))

    def hasten(self, number: str) -> None:
        """Let a job that comes back to the queue start soon: Slurm would have it wait for two minutes.

        Not at once: to a node's slurmd, whose clock for this has seconds, a launch in the second in which the job was
        killed last is one that was killed already.
        """
        self.wait("a job in the queue", lambda: self.job(number)["JobState"] == "PENDING", seconds=120)
        self.control.run("scontrol", "update", f"jobid={number}", "starttime=now+10")

    def wait(self, what: str, holds: Callable[[], bool], seconds: float = _SECONDS) -> None:
        """Until something holds."""
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                logs = [(self.control.folder / "slurmctld.log").read_text()]
                logs += [(node.folder / "slurmd.log").read_text() for node in self._nodes]
                raise TimeoutError("\n".join([f"not within {seconds:.0f} s: {what}", *(log[-3000:] for log in logs)]))
            time.sleep(0.5)


def _start_munge(node: Node) -> None:
    node.run("mkdir", "-m", "755", "/run/munge")
    kept = [f"--{kind}-file=/run/munge/{kind}" for kind in ("log", "pid", "seed")]
    node.begin("munged", "--foreground", *kept, log=node.folder / "munged.log")
    end = time.monotonic() + _SECONDS
    while node.attempt("munge", "-n").returncode != 0:
        if time.monotonic() > end:
            raise TimeoutError(f"munged of {node.name} does not answer; see {node.folder}/munged.log")
        time.sleep(0.1)
