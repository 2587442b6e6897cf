"""The arithmetic of the whole-run table, at made-up costs."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from phase_costs import BoxCosts, GeneralCosts
from whole_run import ALONE, AS_IS, VARIANTS, Ways, WholeRun, Workload, predict, serial_share, workloads

GENERAL = GeneralCosts(**dict.fromkeys(GeneralCosts.__slots__, 0.01))
COSTS = BoxCosts(**dict.fromkeys(BoxCosts.__slots__, 0.02))
BOXES = {128: COSTS, 256: COSTS}
# There are more maps than twice as many ranks: they are shared out evenly.
WORK = Workload("some", 100_000, 128, 8, 16, pose_table=True)


def seconds(work: Workload, ways: Ways = AS_IS) -> dict[str, float]:
    return {phase.name: phase.seconds for phase in WholeRun(work, GENERAL, COSTS, ways).phases()}


@pytest.mark.parametrize("ways", [AS_IS, *VARIANTS.values()])
def test_what_ranks_do_halves_with_twice_the_ranks(ways: Ways) -> None:
    phases = WholeRun(WORK, GENERAL, COSTS, ways).phases()
    twice = seconds(replace(WORK, ranks=2 * WORK.ranks), ways)
    for phase in phases:
        if phase.runs_on == "ranks":
            assert twice[phase.name] == pytest.approx(phase.seconds / 2), phase.name
        elif phase.name != "checkpoints":
            # There are half as many steps between them, too.
            assert twice[phase.name] == pytest.approx(phase.seconds), phase.name


@pytest.mark.parametrize("work", workloads(), ids=lambda work: work.name)
def test_json_holds_what_it_promises(work: Workload) -> None:
    found = json.loads(json.dumps(predict(work, GENERAL, BOXES)))
    assert found["name"] == work.name
    assert 0 <= found["serial_share"] <= 1
    assert found["predicted_minutes"] * 60 == pytest.approx(sum(phase["seconds"] for phase in found["phases"]))
    assert {"name", "runs_on", "seconds", "source", "formula"} == set(found["phases"][0])
    assert all(phase["seconds"] >= 0 for phase in found["phases"])
    assert set(found["variants"]) == set(VARIANTS)


def test_names_are_those_of_the_issue() -> None:
    plain = ["100k x 128, 1 GPU", "330k x 256, 8 GPUs", "1M x 256, 32 GPUs"]
    assert [work.name for work in workloads()] == [each + poses for each in plain for poses in ("", ", pose table")]


def test_a_pose_table_adds_a_search_and_a_consensus_at_the_end() -> None:
    given, table = seconds(replace(WORK, pose_table=False)), seconds(WORK)
    assert {"pose search", "consensus at refined poses"} <= set(table) - set(given)
    assert table["consensus"] == pytest.approx(3 * given["consensus"])


def test_the_share_of_one_process_is_of_driver_and_leader() -> None:
    phases = WholeRun(WORK, GENERAL, COSTS).phases()
    assert serial_share(phase for phase in phases if phase.runs_on in ALONE) == 1
    assert serial_share(phase for phase in phases if phase.runs_on not in ALONE) == 0
    assert serial_share([]) == 0
