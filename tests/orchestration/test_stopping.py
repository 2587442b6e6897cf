import os
import signal
import threading
from pathlib import Path

import pytest

from cryoformer_dist.orchestration.providers.provider import judge_exit
from cryoformer_dist.orchestration.stopping import stopping_after_a_step
from cryoformer_dist.runs.stop_request import StopRequest, withdraw_stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_does_what_it_did_before(tmp_path: Path, number: signal.Signals) -> None:
    told: list[str] = []
    heard: list[int] = []
    before = signal.signal(number, lambda number, _: heard.append(number))
    try:
        with stopping_after_a_step(tmp_path, told.append):
            assert not StopRequest(tmp_path).seen()
            os.kill(os.getpid(), number)
            for thread in threading.enumerate():
                if thread.name == "ask-to-stop":
                    thread.join()
            assert len(told) == 1
            assert StopRequest(tmp_path).seen()
            assert heard == []
            os.kill(os.getpid(), number)
            assert heard == [number]
        withdraw_stop(tmp_path)
        withdraw_stop(tmp_path)
        assert not StopRequest(tmp_path).seen()
        with stopping_after_a_step(tmp_path, told.append):
            pass
        os.kill(os.getpid(), number)
        assert heard == [number, number]
    finally:
        signal.signal(number, before)


def test_a_run_that_its_user_stopped_has_not_failed() -> None:
    words = {code: judge_exit(code).word for code in (0, 1, 2, 130, 137, 143)}
    assert words == {0: "succeeded", 1: "failed", 2: "failed", 130: "stopped", 137: "failed", 143: "stopped"}
