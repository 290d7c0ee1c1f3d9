"""Step 1: units that need not be encoded, and ratios that count them all the same."""

from typing import Any

import pytest
import torch
from framework.kit import Best, Norm, answering, policy, ramp
from torch import Tensor

from vidsieve.framework.errors import PlanError, PolicyError, RetentionError, StageError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.planning.frames import plan_frames
from vidsieve.framework.plans import KeepFrames
from vidsieve.framework.records import FrameBatch, VideoShape
from vidsieve.framework.stage import Stage, tunable


def pixels(units: int) -> Tensor:
    """Every unit shows its own number."""
    return torch.arange(float(units)).view(units, 1, 1, 1, 1).expand(units, 2, 3, 4, 4)


def mask(*kept: int, of: int) -> Tensor:
    made = torch.zeros(of, dtype=torch.bool)
    made[list(kept)] = True
    return made


class Every(Stage):
    """The first units, as many as the budget or the setting says."""

    solves = "keep_ratio"
    keep_ratio: float | None = tunable(None, low=0.0, high=1.0)

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        return (1 / shape.total, 1.0) if self.keep_ratio is None else (self.keep_ratio, self.keep_ratio)

    @hookimpl
    def reduce_frames(self, frames: FrameBatch) -> KeepFrames:
        units = frames.pixels.shape[0]
        count = frames.keep_budget or int(units * (self.keep_ratio or 1.0))
        return KeepFrames(torch.arange(units) < count)


def test_without_such_a_stage_every_unit_is_encoded() -> None:
    assert plan_frames(policy(Norm(), Best(), ratio=0.5), pixels(4)).tolist() == [True] * 4


def test_a_later_stage_sees_what_an_earlier_one_left() -> None:
    seen: list[Any] = []

    def second(frames: FrameBatch) -> KeepFrames:
        assert frames.timestamps_s is not None
        seen.append((frames.pixels[:, 0, 0, 0, 0].tolist(), frames.timestamps_s.tolist(), frames.keep_budget))
        return KeepFrames(mask(1, of=2))

    both = policy(
        ("first", answering(reduce_frames=KeepFrames(mask(1, 3, of=4)))), ("second", answering(reduce_frames=second)),
        Norm(), Best(), ratio=0.1,
    )  # fmt: skip
    kept = plan_frames(both, pixels(4), timestamps_s=torch.tensor([0.0, 0.5, 1.0, 1.5]))
    assert seen == [([1.0, 3.0], [0.5, 1.5], None)]
    assert kept.tolist() == [False, False, False, True]


@pytest.mark.parametrize(("ratio", "kept"), [(0.5, 4), (0.25, 2), (0.01, 1), (1.0, 8), (0.29, 2)])
def test_frames_alone_answer_for_the_ratio(ratio: float, kept: int) -> None:
    assert int(plan_frames(policy(Every(), ratio=ratio), pixels(8)).sum()) == kept


def test_beside_a_closer_frames_follow_their_own_setting() -> None:
    both = policy(Every(keep_ratio=0.5), Norm(), Best(), ratio=0.1)
    assert int(plan_frames(both, pixels(8)).sum()) == 4
    with pytest.raises(PolicyError, match="'every' is not the last reducing stage, so its keep_ratio must be given"):
        policy(Every(), Norm(), Best(), ratio=0.1)


@pytest.mark.parametrize(
    ("plan", "error", "words"),
    [
        (None, PlanError, "returned nothing; return KeepFrames"),
        (KeepFrames(mask(of=4)), PlanError, "drops every unit; keep at least one"),
        (KeepFrames(mask(0, 1, of=3)), PlanError, r"must have shape \(4\), got \(3,\)"),
        (KeepFrames(mask(0, 1, 2, of=4)), PlanError, "kept 3 units where keep_budget asks for 2"),
        (lambda frames: 1 / 0, StageError, "raised ZeroDivisionError"),
    ],
)
def test_a_bad_answer_is_refused_by_name(plan: Any, error: type[Exception], words: str) -> None:
    bad = policy(("bad", answering(reduce_frames=plan)), ratio=0.5)
    with pytest.raises(error, match=f"policy 'test', stage 'bad', reduce_frames: .*{words}"):
        plan_frames(bad, pixels(4))


def test_another_count_is_welcome_without_exactness() -> None:
    loose = policy(("loose", answering(reduce_frames=KeepFrames(mask(0, of=4)))), ratio=0.5, exact=False)
    assert int(plan_frames(loose, pixels(4)).sum()) == 1


def test_a_ratio_out_of_reach_is_refused() -> None:
    all_or_none = answering(reduce_frames=KeepFrames(mask(0, of=4)), attainable=(0.75, 1.0))
    with pytest.raises(RetentionError, match="leaves 3 to 4"):
        plan_frames(policy(("x", all_or_none), ratio=0.25), pixels(4))


def test_chance_is_drawn_from_the_seed_and_the_place_of_the_video() -> None:
    drawn: list[float] = []

    def draw(frames: FrameBatch) -> KeepFrames:
        assert frames.rng is not None
        drawn.append(float(torch.rand(1, generator=frames.rng)))
        return KeepFrames(mask(0, 1, of=4))

    chance = policy(("chance", answering(reduce_frames=draw)), ratio=0.5)
    for which in ({}, {}, {"seed": 1}, {"video_index": 1}):
        plan_frames(chance, pixels(4), **which)
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def test_skipped_units_count_in_the_baseline() -> None:
    """Of 8 units of 4 tokens, 4 were encoded: a quarter of the video is 8 tokens, half of what is left."""
    both = policy(Every(keep_ratio=0.5), Norm(), Best(), ratio=0.25)
    plan = both.plan(ramp(4, 4), units=8, frame_index=torch.tensor([0, 2, 4, 7]))
    assert plan.report.kept_tokens == 8
    assert plan.report.baseline_tokens == 32
    assert plan.report.attained_ratio == 0.25
    assert plan.report.per_frame == ((0, 0, 0, 0, 4, 0, 0, 4),)
    assert plan.keep.shape == (4, 4)


def test_a_ratio_above_what_was_encoded_keeps_all_and_says_so() -> None:
    both = policy(Every(keep_ratio=0.5), Norm(), Best(), ratio=0.5)
    plan = both.plan(ramp(3, 4), units=8, frame_index=torch.tensor([0, 2, 4]))
    assert plan.report.kept_tokens == 12
    assert plan.report.notes == ("12 tokens reached 'best', fewer than the 16 asked for.",)
