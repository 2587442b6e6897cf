import pytest

from cryoformer_dist.orchestration import advice
from cryoformer_dist.orchestration.advice import advise_box, advise_epochs, advise_on, estimate_training


@pytest.fixture
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine without a GPU that takes 10 images a second, at any box; the boxes that were measured."""
    measured: list[int] = []

    class _Benchmark:
        @staticmethod
        def of(config: object, mask: object, batch: int, device: object) -> "_Benchmark":
            measured.append(len(mask))  # type: ignore[arg-type]
            return _Benchmark()

        def images_per_second(self, seconds: float) -> float:
            return 10.0

    monkeypatch.setattr(advice, "StepBenchmark", _Benchmark)
    monkeypatch.setattr(advice, "training_device", lambda: "cpu")
    return measured


def test_boxes_are_even_fit_the_images_and_are_smaller_on_a_cpu() -> None:
    assert [advise_box(256, device) for device in ("cpu", "cuda")] == [64, 128]
    assert advise_box(51, "cpu") == 50


def test_more_particles_take_fewer_epochs_within_limits() -> None:
    assert [advise_epochs(count, "cpu") for count in (100, 4_000, 10_000, 1_000_000)] == [20, 20, 12, 10]
    assert [advise_epochs(count, "cuda") for count in (100_000, 150_000, 1_000_000)] == [20, 14, 10]


def test_time_goes_with_particles_epochs_and_beyond_the_measured_box_with_voxels(slow_machine: list[int]) -> None:
    one = estimate_training(32, 1_000, 1, 1.0)
    assert one.seconds == pytest.approx(2 * 1_000 / 10)
    assert estimate_training(32, 3_000, 2, 1.0).seconds == pytest.approx(6 * one.seconds)
    assert estimate_training(128, 1_000, 1, 1.0).seconds == pytest.approx(8 * one.seconds)
    assert slow_machine == [32, 32, 64]


@pytest.mark.usefixtures("slow_machine")
def test_the_estimate_says_how_wrong_it_may_be() -> None:
    lines = advise_on(128, 2.0, 10_000, 1.0)
    assert "nothing finer than 4 A; for a first look in 8 times less time convert with --box 64" in lines[0]
    assert lines[1].startswith("epochs     12 ")
    # 12 epochs of 10,000 images at 10 a second, eight times the voxels, and as long again: 53 h.
    assert "about 53 h on this machine's CPU with one worker, 27 h to 4 days (10 images/s" in lines[2]


def test_a_machine_that_takes_no_step_gives_no_time_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(*arguments: object) -> None:
        raise RuntimeError("out of memory\nlong story")

    monkeypatch.setattr(advice.StepBenchmark, "of", of)
    lines = advise_on(32, 2.0, 100, 1.0)
    assert lines[-1].startswith("training   time unknown: no training step on the ")
    assert lines[-1].endswith("out of memory")


def test_a_real_step_is_measured() -> None:
    found = estimate_training(16, 100, 2, 0.05)
    assert found.images_per_second > 0
    assert found.seconds == pytest.approx(2 * 200 / found.images_per_second)
