import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from support.tiny_runs import tiny_settings

from cryoformer_dist.config.cluster import SlurmCluster, WorkersConfig
from cryoformer_dist.config.loading import dump_yaml
from cryoformer_dist.errors import ClusterError
from cryoformer_dist.orchestration.providers import slurm
from cryoformer_dist.orchestration.providers.provider import JobState
from cryoformer_dist.orchestration.providers.slurm import SlurmProvider, write_job_script
from cryoformer_dist.orchestration.request import RunRequest

COMMANDS = ("sbatch", "srun", "scontrol", "sacct", "scancel")
MakeRequest = Callable[..., RunRequest]
Programs = Callable[..., Path]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _config(storage: Path, **keys: Any) -> SlurmCluster:
    return SlurmCluster(provider="slurm", storage=str(storage), cpus_per_node=2, port=_free_port(), **keys)


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: Programs) -> Path:
    """A Slurm of stand-ins, quick to be asked; the folder holds what it knows of its jobs."""
    programs("slurm.py", *COMMANDS)
    programs("nodes_python.py", "nodes-python").joinpath("nodes-python").write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -S -E "{Path(__file__).with_name("stand_ins")}/nodes_python.py" "$@"\n'
    )
    folder = tmp_path / "slurm"
    folder.mkdir()
    monkeypatch.setenv("SLURM_STAND_IN", str(folder))
    monkeypatch.setattr(slurm, "_LOG_SECONDS", 0.05)
    monkeypatch.setattr(slurm, "_STATE_SECONDS", 0.1)
    return folder


def test_the_script_holds_what_the_file_says_before_any_command(tmp_path: Path, make_request: MakeRequest) -> None:
    config = _config(
        tmp_path,
        nodes=3,
        gpus_per_node=4,
        time="1-00:00:00",
        partition="gpu",
        account="cryo",
        options=["--constraint=a100", "--comment=two words"],
        setup=["module load cuda"],
        environment={"NCCL_SOCKET_IFNAME": "ib0 ib1"},
    )
    script = write_job_script(config, make_request(config), "/shared/runs/arm_1/launch")
    options = re.findall(r"^#SBATCH (.+)$", script, re.MULTILINE)
    assert {"--nodes=3", "--gpus-per-node=4", "--cpus-per-task=2", "--time=1-00:00:00", "--partition=gpu"} < set(
        options
    )
    assert {"--account=cryo", "--constraint=a100", "'--comment=two words'", "--requeue"} < set(options)
    # Slurm stops reading options at the first command.
    first_command = script.index("module load cuda")
    assert script.rindex("\n#SBATCH") < first_command < script.index("export NCCL_SOCKET_IFNAME='ib0 ib1'")
    assert "command=(python -m cryoformer_dist.cli drive /shared/runs/arm_1/launch/cluster.yaml" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_no_token_is_written_anywhere_and_nothing_but_its_own_is_ended(
    tmp_path: Path, make_request: MakeRequest
) -> None:
    config = _config(tmp_path)
    code = [line.partition("#")[0] for line in write_job_script(config, make_request(config), "/f").splitlines()]
    assert [line for line in code if re.search(r"ray stop|symmetric-run|pkill|killall", line)] == []
    assert [line for line in code if "RAY_AUTH_TOKEN" in line and ">" in line] == []


def test_a_job_that_may_not_return_to_the_queue_is_not_asked_to(tmp_path: Path, make_request: MakeRequest) -> None:
    config = _config(tmp_path, requeue=False)
    options = re.findall(r"^#SBATCH (\S+)$", write_job_script(config, make_request(config), "/f"), re.MULTILINE)
    assert "--no-requeue" in options
    assert [option for option in options if option.startswith("--signal")] == []


def test_only_a_run_that_can_shrink_keeps_its_job_when_a_node_is_lost(
    tmp_path: Path, make_request: MakeRequest
) -> None:
    for count, keeps in ((2, False), ("1..2", True)):
        config = _config(tmp_path, workers=WorkersConfig(count=count))
        script = write_job_script(config, make_request(config), "/f")
        assert ("\n#SBATCH --no-kill\n" in script) == keeps


def _find_function(name: str) -> str:
    """Of the job script."""
    script = (files("cryoformer_dist.orchestration.providers") / "slurm_job.sh").read_text()
    function = re.search(rf"^{name}\(\) {{\n.*?^}}$", script, re.MULTILINE | re.DOTALL)
    assert function is not None
    return function[0]


@pytest.mark.parametrize(("begun", "tries"), [(False, 2), (True, 1)])
def test_a_ray_that_ends_before_the_run_begins_is_started_once_more_and_that_is_told(
    begun: bool, tries: int, tmp_path: Path
) -> None:
    ray = tmp_path / "ray"
    ray.write_text(f"#!/bin/sh\necho start >>{tmp_path}/starts\nexit 1\n")
    ray.chmod(0o755)
    if begun:
        (tmp_path / "begun").touch()
    variables = os.environ | {"job_log": str(tmp_path / "log"), "begun": str(tmp_path / "begun")}
    program = f"{_find_function('run_ray')}\nrun_ray {ray}"
    done = subprocess.run(["bash", "-uc", program], env=variables, check=False, timeout=20)
    assert (tmp_path / "starts").read_text().count("start") == tries
    told = (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""
    again = re.findall(r"Ray did not start on \S+ \(load [\d.]+ on \d+ cores\); it is tried once more", told)
    assert len(again) == tries - 1
    # One that has ended without having been asked to, before the run has begun, ends the job.
    assert begun or done.returncode == 1


@pytest.mark.parametrize(
    ("left", "may_return", "told"),
    [
        ("node2,node3", True, ["requeue 7"]),
        ("node2,node3", False, ["requeue 7", "scancel 7"]),
        ("node1,node2", True, []),
        ("", True, []),
    ],
)
def test_nodes_that_slurm_left_without_the_first_put_the_job_back(
    left: str, may_return: bool, told: list[str], tmp_path: Path
) -> None:
    slurm_says = f"""
        run_ray() {{ echo "$1" >{tmp_path}/ran; }}
        squeue() {{ echo {left}; }}
        scancel() {{ echo "scancel $*" >>{tmp_path}/told; }}
        scontrol() {{
            [ "$1" = show ] && {{ echo "$3" | tr , '\\n'; return; }}
            echo "$*" >>{tmp_path}/told
            {str(may_return).lower()}
        }}
        sleep() {{ :; }}
        # Between two questions.
        wait() {{ exit 0; }}
    """
    program = f"{slurm_says}\n{_find_function('keep_ray')}\nkeep_ray node1 ray"
    variables = os.environ | {"SLURM_JOB_ID": "7", "job_log": str(tmp_path / "log")}
    subprocess.run(["bash", "-c", program], env=variables, check=True, timeout=20)
    assert (tmp_path / "ran").read_text() == "ray\n"
    found = tmp_path / "told"
    assert (found.read_text().splitlines() if found.exists() else []) == told
    assert (tmp_path / "log").exists() == bool(told)


def test_files_go_where_the_nodes_see_them(tmp_path: Path, state_folder: Path, make_request: MakeRequest) -> None:
    config = _config(tmp_path / "runs")
    preview = SlurmProvider(config).preview(make_request(config))
    folder = tmp_path / "runs" / "arm_1" / "launch"
    assert [line for line in preview.splitlines() if line.startswith(f"# {folder}")] == [
        f"# {folder}/{name}" for name in ("cluster.yaml", "run.yaml", "job.sbatch")
    ]
    assert preview.endswith(f"$ sbatch --parsable {folder}/job.sbatch")
    assert not folder.exists()
    remote = config.model_copy(update={"storage": "s3://bucket/runs"})
    assert f"# {state_folder}/cryoformer-dist/launches/arm_1/run.yaml" in SlurmProvider(remote).preview(
        make_request(remote)
    )


def test_a_job_runs_the_driver_among_its_nodes_and_ends_as_the_driver_does(
    tmp_path: Path, known: Path, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIVER", "exit 2")
    config = _config(tmp_path / "runs", nodes=2, python="nodes-python")
    provider = SlurmProvider(config)
    handle = provider.submit(make_request(config))
    lines = list(provider.follow(handle))
    folder = tmp_path / "runs" / "arm_1" / "launch"
    assert lines[-2:] == [
        "nodes asked 2",
        f"driver drive {folder}/cluster.yaml {folder}/run.yaml --name arm_1 at 127.0.0.1:{config.port} token 64",
    ]
    assert provider.ask_state(handle) == JobState("failed", 2)
    steps = (known / "steps").read_text().splitlines()
    # The nodes start side by side: which comes first is chance, and the job may end before a worker's step, which the
    # stand-in driver does not wait for, has written down what it was asked.
    found = sorted(re.findall(r"--(?:nodelist|exclude|ntasks)=\S+|--head", step) for step in steps)
    worker = ["--ntasks=1", "--exclude=127.0.0.1"]
    assert [step for step in found if step != worker] == [
        ["--ntasks=1", "--nodelist=127.0.0.1", "--head"],
        ["--ntasks=1", "--nodelist=127.0.0.2"],
        # Ray's folder, made and taken away.
        ["--ntasks=2"],
        ["--ntasks=2"],
    ]
    assert found.count(worker) <= 1
    assert [step for step in steps if "token" in step.lower()] == []
    assert (known / "left_behind").read_text() == ""


def test_a_job_that_is_warned_goes_back_to_the_queue_and_on_where_it_was(
    tmp_path: Path, known: Path, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIVER", "work")
    monkeypatch.setenv("SLURM_STAND_IN_QUEUE_SECONDS", "0.3")
    config = _config(tmp_path / "runs", python="nodes-python")
    provider = SlurmProvider(config)
    handle = provider.submit(make_request(config))
    lines = []
    for line in provider.follow(handle):
        lines.append(line)
        if line.startswith("driver drive") and "--resume" not in line:
            os.kill(int((known / f"{handle['job']}.pid").read_text()), signal.SIGUSR1)
    assert provider.ask_state(handle) == JobState("succeeded", 0)
    told = "\n".join(lines)
    marks = ["back to the queue", "driver: ended by a signal", "waits in the queue", "start number 2", "arm_1 --resume"]
    # The last time each is said: it may wait in the queue at first, too.
    places = [told.rindex(mark) for mark in marks]
    assert places == sorted(places)


def test_a_stopped_job_leaves_no_process_and_says_so(
    tmp_path: Path, known: Path, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIVER", "work")
    config = _config(tmp_path / "runs", python="nodes-python")
    provider = SlurmProvider(config)
    handle = provider.submit(make_request(config))
    lines = []
    for line in provider.follow(handle):
        lines.append(line)
        if line.startswith("driver drive"):
            assert provider.ask_state(handle) == JobState("running")
            provider.stop(handle)
    assert lines[-1] == f"Slurm job {handle['job']} ended: CANCELLED"
    assert provider.ask_state(handle) == JobState("stopped")
    # The shell of the job itself waits for Slurm's last word.
    left = (known / "left_behind").read_text().splitlines()
    assert [line for line in left if not line.startswith(("bash", "sleep"))] == []


def test_a_head_that_does_not_start_is_said_with_what_it_said(
    tmp_path: Path, known: Path, make_request: MakeRequest
) -> None:
    config = _config(tmp_path / "runs", python="no-such-python")
    provider = SlurmProvider(config)
    handle = provider.submit(make_request(config))
    told = "\n".join(provider.follow(handle))
    assert f"Ray did not start on 127.0.0.1; is port {config.port} taken" in told
    assert "no-such-python: command not found" in told
    assert provider.ask_state(handle) == JobState("failed", 1)


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ("COMPLETED|0:0\n", JobState("succeeded", 0)),
        ("FAILED|2:0\n", JobState("failed", 2)),
        ("CANCELLED by 1000|0:15\n", JobState("stopped")),
        ("TIMEOUT|0:0\n", JobState("failed")),
        ("NODE_FAIL|0:9\n", JobState("failed", 137)),
        ("OUT_OF_MEMORY|0:125\n", JobState("failed", 253)),
        ("PENDING|0:0\n", JobState("pending")),
        ("COMPLETING|0:0\n", JobState("running")),
        ("", JobState("lost")),
        (None, JobState("lost")),
    ],
)
def test_a_job_the_controller_forgot_is_looked_up_in_accounting(
    kept: str | None, expected: JobState, tmp_path: Path, known: Path
) -> None:
    if kept is not None:
        (known / "sacct").write_text(kept)
    assert SlurmProvider(_config(tmp_path)).ask_state({"job": "12", "log": ""}) == expected


def test_a_controller_that_does_not_answer_is_no_lost_job(tmp_path: Path, known: Path) -> None:
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\necho Unable to contact slurm controller >&2\nexit 1\n")
    with pytest.raises(ClusterError, match="Unable to contact slurm controller"):
        SlurmProvider(_config(tmp_path)).ask_state({"job": "12", "log": ""})


def test_lines_of_a_growing_log_come_whole_and_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = slurm._GrowingFile(path)
    assert log.read_lines() == []
    path.write_bytes("één\n\ntwo\nth\xc3".encode("latin1"))
    assert log.read_lines()[1:] == ["", "two"]
    with path.open("ab") as file:
        file.write(b"\xa9e")
    assert log.read_lines() == []
    assert log.read_rest() == ["thée"]


@pytest.mark.slow
def test_a_job_of_two_nodes_is_one_ray_for_its_driver(
    tmp_path: Path, known: Path, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "driver.py"
    program.write_text(
        "import ray\nray.init(log_to_driver=False, logging_level='ERROR')\n"
        "print('driver sees', len(ray.nodes()), 'nodes', ray.cluster_resources()['CPU'], 'CPUs')\nraise SystemExit(2)\n"
    )
    monkeypatch.setattr(RunRequest, "make_command", lambda self, folder, python: [python, str(program)])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = _config(tmp_path / "runs", nodes=2, python=sys.executable, dashboard_port=_free_port())
    provider = SlurmProvider(config)
    started = time.monotonic()
    handle = provider.submit(make_request(config))
    lines = list(provider.follow(handle))
    assert lines[-2:] == ["cryoformer-dist: 2 of 2 nodes are up", "driver sees 2 nodes 4.0 CPUs"]
    assert provider.ask_state(handle) == JobState("failed", 2)
    assert time.monotonic() - started < 150
    assert not Path(f"/tmp/cf_{handle['job']}").exists()
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert f"/tmp/cf_{handle['job']}" not in listed


@pytest.mark.slow
def test_launch_on_slurm_ends_in_the_report_of_the_run(tiny_store: Path, tmp_path: Path, known: Path) -> None:
    cluster = {
        "provider": "slurm",
        "storage": str(tmp_path / "runs"),
        "nodes": 2,
        "cpus_per_node": 2,
        "port": _free_port(),
        "dashboard_port": _free_port(),
        "python": sys.executable,
        "workers": {"count": 2},
    }
    (tmp_path / "cluster.yaml").write_text(dump_yaml(cluster))
    (tmp_path / "run.yaml").write_text(dump_yaml(tiny_settings(tiny_store)))
    program = [sys.executable, "-m", "cryoformer_dist.cli", "launch", "cluster.yaml", "--run", "run.yaml"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 nodes are up" in done.stdout
    assert (tmp_path / "runs" / "tiny" / "report.html").is_file()
