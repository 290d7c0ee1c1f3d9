"""Smaller inputs as controls: brought to the winner's latency over whole frames and tokens, then scored."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest
from tuner.fake_bench import FakeBench, FakeTask, fake_policy

from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoShape
from vidsieve.framework.task import Example, Outcome
from vidsieve.tuner.judge.finals import Confirmed
from vidsieve.tuner.judge.matched_controls import CONTROL_EXAMPLES, MOST_PROBES, controls_for, run_control, sizes
from vidsieve.tuner.judge.paired_accuracy import Heldout
from vidsieve.tuner.measure.latency import TimingRules
from vidsieve.tuner.measure.measurement import Measurement
from vidsieve.tuner.measured import Control, Latency
from vidsieve.tuner.protocol import Bench, Intervention, SmallerInput
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.result import Listener


class SmallerBench(FakeBench):
    """50 ms + 450 ms x the share of the input, in whole frames or in whole rows and columns of a frame."""

    shape = VideoShape(frames=8, tokens=36)
    smaller = frozenset({"frames", "pixels"})

    def __init__(self, quality: Callable[[float], float] = lambda share: share, **options: float) -> None:
        super().__init__(lambda policy: 0.8, **options)  # type: ignore[arg-type]
        self.quality_of = quality

    def share(self, intervention: SmallerInput) -> float:
        if intervention.kind == "frames":
            return max(1, round(8 * intervention.ratio)) / 8
        return max(1, int(6 * math.sqrt(intervention.ratio) + 1e-9)) ** 2 / 36

    def true_ms(self, policy: Intervention | None) -> float:
        if isinstance(policy, SmallerInput):
            return self.fixed_ms + self.full_ms * self.share(policy)
        return super().true_ms(policy)

    def score(self, policy: Intervention | None, examples: Sequence[Example]) -> Iterator[Outcome]:
        if not isinstance(policy, SmallerInput):
            yield from super().score(policy, examples)
            return
        self.scored.append((policy.name, policy.hash))
        for example in examples:
            yield Outcome(
                example_id=example.id,
                group=example.group,
                correct=float(float(example.question) < self.quality_of(self.share(policy))),
                prediction="a",
                retention_ratio=self.share(policy),
            )


def compare(
    bench: SmallerBench,
    control: Intervention,
    winner: Policy,
    clock: Callable[[], float] = lambda: 0.0,
    **request: float,
) -> tuple[Control, Measurement]:
    measurement = Measurement.open(bench, TuneRequest(latency_ms=300, **request), Listener(), None, clock)  # type: ignore[arg-type]
    heldout = Heldout(bench, FakeTask().examples("heldout", 200), "accuracy")
    latency = measurement.timer.measure(winner, TimingRules())
    bench.timed_calls.clear()
    chosen = Confirmed(winner, latency)
    return run_control(measurement, heldout, control, chosen, heldout.outcomes(winner)), measurement


FRAMES, PIXELS = SmallerInput(kind="frames", ratio=1.0), SmallerInput(kind="pixels", ratio=1.0)


def test_the_bench_decides_which_smaller_inputs_there_are() -> None:
    policies = [fake_policy("random")]
    assert controls_for(SmallerBench(), policies) == [*policies, FRAMES, PIXELS]
    assert controls_for(FakeBench(lambda policy: 0.9), policies) == policies
    assert isinstance(SmallerBench(), Bench)


def test_sizes_are_whole_frames_and_whole_tokens_of_a_frame() -> None:
    assert sizes("frames", VideoShape(frames=4, tokens=36)) == [0.25, 0.5, 0.75]
    assert len(sizes("pixels", VideoShape(frames=4, tokens=36))) == 35
    assert sizes("frames", VideoShape(frames=1, tokens=36)) == []


@pytest.mark.parametrize("retention", [0.2, 0.3, 0.45, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("kind", ["frames", "pixels"])
def test_the_largest_input_as_fast_as_the_winner_is_found_in_a_few_looks(kind: str, retention: float) -> None:
    bench = SmallerBench()
    control, _ = compare(bench, SmallerInput(kind=kind, ratio=1.0), fake_policy("good", retention))  # type: ignore[arg-type]
    limit = bench.true_ms(fake_policy("good", retention)) * 1.02
    every = [SmallerInput(kind=kind, ratio=ratio) for ratio in sizes(kind, bench.shape)]  # type: ignore[arg-type]
    best = max(bench.share(each) for each in every if bench.true_ms(each) <= limit)
    assert control.retention_ratio == pytest.approx(best, abs=1e-6)
    assert control.latency is not None
    assert control.latency.ratio.value <= limit / 500
    # the looks, and the full input beside each; six pairs a look and ten at the end, plus warm-up
    ours = [name for name, _ in bench.timed_calls if name]
    assert len(ours) <= (MOST_PROBES + 1) * (6 + 4) + 10


def test_a_smaller_input_is_scored_on_held_out_examples_and_told() -> None:
    bench = SmallerBench(lambda share: 0.5 + 0.2 * share)
    control, _ = compare(bench, FRAMES, fake_policy("good", 0.5))
    assert (control.name, control.kind, control.input_ratio, control.retention_ratio) == (
        "fewer-frames",
        "frames",
        0.5,
        0.5,
    )
    assert control.accuracy is not None and control.accuracy.value == pytest.approx(0.6)
    assert control.advantage is not None and control.advantage.value == pytest.approx(0.2)
    assert control.advantage.low > 0
    assert control.warning == ""
    told = control.to_dict()
    assert (told["kind"], told["input_ratio"], "reason" in told) == ("frames", 0.5, False)


def test_a_winner_that_loses_to_fewer_frames_is_warned_about_with_the_latency_reached() -> None:
    control, _ = compare(SmallerBench(lambda share: 0.85), FRAMES, fake_policy("good", 0.5))
    assert "does not beat the control fewer-frames at 55% of the uncompressed time" in control.warning


def test_a_winner_faster_than_the_smallest_input_leaves_a_reason() -> None:
    bench = SmallerBench(fixed_ms=50.0, full_ms=450.0)
    control, _ = compare(bench, FRAMES, fake_policy("good", 0.01))
    assert control.accuracy is None
    assert "the smallest input takes" in control.reason
    assert not [name for name, _ in bench.scored if name == "fewer-frames"]


def test_an_input_of_one_frame_cannot_be_made_smaller() -> None:
    bench = SmallerBench()
    bench.shape = VideoShape(frames=1, tokens=36)
    assert "cannot be made smaller" in compare(bench, FRAMES, fake_policy("good"))[0].reason


def test_without_time_left_a_control_says_so_and_runs_nothing() -> None:
    now = [0.0]
    bench = SmallerBench()

    def late() -> float:
        now[0] += 1.0
        return now[0]

    for each in (FRAMES, fake_policy("random")):
        control, _ = compare(bench, each, fake_policy("good"), clock=late, time_budget_s=1.0)
        assert control.reason == "time budget used up"
        assert control.name == each.name
        assert not bench.timed_calls


def test_a_smaller_input_that_fails_is_a_reason() -> None:
    class Failing(SmallerBench):
        def timed(self, policy: Intervention | None, clip_index: int, metric: str) -> Mapping[str, float]:
            if isinstance(policy, SmallerInput):
                raise RuntimeError("no such frames")
            return super().timed(policy, clip_index, metric)

    control, _ = compare(Failing(), PIXELS, fake_policy("good"))
    assert control.reason == "RuntimeError: no such frames"
    assert control.kind == "pixels"
    assert control.to_dict()["reason"] == control.reason


@pytest.mark.parametrize("kind", ["frames", "pixels"])
def test_noise_ends_in_a_size_near_the_right_one(kind: str) -> None:
    for seed in range(3):
        bench = SmallerBench(noise=0.1, seed=seed)
        control, _ = compare(bench, SmallerInput(kind=kind, ratio=1.0), fake_policy("good", 0.5))  # type: ignore[arg-type]
        assert isinstance(control.latency, Latency)
        assert control.retention_ratio is not None
        assert 0.24 <= control.retention_ratio <= 0.75


def test_a_control_is_scored_on_some_of_the_held_out_examples_and_compared_on_those() -> None:
    bench, winner = SmallerBench(), fake_policy("vidcom2").with_(retention_ratio=0.25)
    measurement = Measurement.open(bench, TuneRequest(latency_ms=300), Listener(), None, lambda: 0.0)
    heldout = Heldout(bench, FakeTask().examples("heldout", CONTROL_EXAMPLES + 50), "accuracy")
    confirmed = Confirmed(winner, measurement.timer.measure(winner, TimingRules()))
    found = run_control(measurement, heldout, fake_policy("random"), confirmed, heldout.outcomes(winner))
    assert found.accuracy is not None and found.accuracy.n == CONTROL_EXAMPLES
    assert found.advantage is not None and found.advantage.n == CONTROL_EXAMPLES
