"""The last reducing stage answers for the total."""

import pytest
import torch
from framework.kit import Best, Even, Norm, Window, answering, policy, ramp
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsieve.framework.errors import PlanError, RetentionError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.planning.attainable import closing
from vidsieve.framework.plans import Keep, tokens_to_keep
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoShape, VideoTokens
from vidsieve.framework.stage import Stage, tunable


def window(ratio: float | None, drop: float | None = None, exact: bool = True) -> Policy:
    return policy(("window", Window(drop_ratio=drop)), ratio=ratio, exact=exact)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.integers(1, 40), st.floats(0.01, 1.0))
def test_top_scores_leave_exactly_what_was_asked(frames: int, tokens: int, ratio: float) -> None:
    plan = policy(Even(), Norm(), Best(), ratio=ratio).plan(ramp(frames, tokens))
    assert plan.report.kept_tokens == tokens_to_keep(frames * tokens, ratio)


@settings(deadline=None, max_examples=80)
@given(st.integers(2, 9), st.integers(1, 60), st.floats(0.01, 1.0))
def test_a_solved_setting_and_mended_rounding_leave_exactly_what_was_asked(
    frames: int, tokens: int, ratio: float
) -> None:
    """Window's counts jump by a token a frame; between two jumps the core mends."""
    asked = tokens_to_keep(frames * tokens, ratio)
    made = window(ratio)
    if asked < tokens:
        with pytest.raises(RetentionError):
            made.plan(ramp(frames, tokens))
        return
    plan = made.plan(ramp(frames, tokens))
    assert plan.report.kept_tokens == asked
    assert plan.keep[0].all(), "the first frame is protected"


def test_the_setting_is_solved_for_the_tokens_that_reach_the_closer() -> None:
    first = policy(Norm(), Best(keep_ratio=0.5), Window(), ratio=0.4).plan(ramp(4, 10))
    assert first.report.kept_tokens == 16


@pytest.mark.parametrize("budget", range(10, 41))
def test_bisection_finds_the_nearest_count(budget: int) -> None:
    shape = VideoShape(4, 10)
    [bound] = window(0.5).stages
    stage = closing("here", bound.stage, shape, budget)
    assert isinstance(stage, Window)
    count = stage.attainable(shape)[0] * shape.total
    reachable = [10 + 3 * kept for kept in range(11)]
    assert abs(count - budget) == min(abs(other - budget) for other in reachable)


def test_a_whole_number_is_solved_as_one() -> None:
    class PerFrame(Stage):
        """The first so many tokens of every frame."""

        solves = "count"
        count: int | None = tunable(None, low=1, high=100)

        def attainable(self, shape: VideoShape) -> tuple[float, float]:
            ends = (1, 100) if self.count is None else (self.count, self.count)
            low, high = (sum(min(end, n) for n in shape.per_frame) / shape.total for end in ends)
            return (low, high)

        @hookimpl
        def select_tokens(self, tokens: VideoTokens) -> Keep:
            assert type(self.count) is int
            return Keep(torch.arange(tokens.keep.shape[1]).expand_as(tokens.keep) < self.count)

    plan = policy(PerFrame(), ratio=0.35).plan(ramp(4, 10))
    assert plan.report.per_frame == ((4, 4, 3, 3),)


def test_the_original_stage_keeps_its_setting_free() -> None:
    made = window(0.5)
    made.plan(ramp(4, 10))
    stage = made.stages[0].stage
    assert isinstance(stage, Window)
    assert stage.drop_ratio is None


@pytest.mark.parametrize(("ratio", "reach"), [(0.2, "0.25 to 1"), (0.01, "0.25 to 1")])
def test_a_ratio_below_reach_gives_the_range(ratio: float, reach: str) -> None:
    with pytest.raises(RetentionError, match=f"on 4 frames of 10 visual tokens it reaches {reach}"):
        window(ratio).plan(ramp(4, 10))


def test_a_stage_that_always_loses_some_cannot_be_asked_for_all() -> None:
    lossy = answering(select_tokens=lambda tokens: Keep(tokens.keep), attainable=(0.1, 0.5))
    with pytest.raises(RetentionError, match="of the 8 visual tokens that reach it, it leaves 1 to 4"):
        policy(("lossy", lossy), ratio=1.0).plan(ramp(2, 4))


def test_reach_is_checked_again_on_what_is_left() -> None:
    """Half of all tokens could be Window's, but here all that is left lies in its first frame."""
    first = torch.zeros(4, 10, dtype=torch.bool)
    first[0] = True
    only = answering(select_tokens=Keep(first))
    with pytest.raises(RetentionError, match=r"stage 'window': token_budget 4 asked.*leaves 10 to 10"):
        policy(("only", only), ("window", Window()), ratio=0.1).plan(ramp(4, 10))


@pytest.mark.parametrize("exact", [True, False])
def test_a_fixed_setting_stands_with_the_stages_own_rounding(exact: bool) -> None:
    plan = window(None, drop=0.33, exact=exact).plan(ramp(4, 10))
    assert plan.report.per_frame == ((10, 6, 6, 6),)
    assert plan.report.requested_ratio is None


def test_a_fixed_setting_may_differ_from_the_ratio_by_rounding_alone() -> None:
    assert window(0.69, drop=0.33).plan(ramp(4, 10)).report.kept_tokens == 28


def test_without_exactness_the_solved_count_is_not_mended() -> None:
    assert window(0.5, exact=False).plan(ramp(4, 10)).report.kept_tokens in (19, 22)
    assert window(0.5).plan(ramp(4, 10)).report.kept_tokens == 20


def test_a_closer_is_told_its_budget_and_an_earlier_reducer_is_not() -> None:
    told: list[tuple[int | None, float | None]] = []

    def note(tokens: VideoTokens) -> Keep:
        told.append((tokens.token_budget, tokens.retention_ratio))
        mask = torch.zeros_like(tokens.keep)
        mask[:, : 4 if tokens.token_budget is None else 2] = True
        return Keep(mask & tokens.keep)

    policy(("a", answering(select_tokens=note)), ("b", answering(select_tokens=note)), ratio=0.25).plan(ramp(2, 8))
    assert told == [(None, 0.25), (4, 0.25)]


def test_only_the_last_hook_of_the_closer_is_given_the_budget() -> None:
    told: list[int | None] = []

    def note(tokens: VideoTokens) -> Keep:
        told.append(tokens.token_budget)
        return Keep(tokens.keep if tokens.token_budget is None else torch.arange(4).expand(2, 4) < 2)

    policy(("both", answering(select_tokens=note, merge_tokens=note)), ratio=0.5).plan(ramp(2, 4))
    assert told == [None, 4]


def test_fewer_tokens_than_asked_are_all_kept_and_noted() -> None:
    plan = policy(Norm(), ("first", Best(keep_ratio=0.25)), ("again", Norm()), ("last", Best()), ratio=0.25)
    report = plan.with_(settings={"first.keep_ratio": 0.125}).plan(ramp(4, 8)).report
    assert report.kept_tokens == 4
    assert report.notes == ("4 tokens reached 'last', fewer than the 8 asked for.",)
    assert plan.plan(ramp(4, 8)).report.notes == ()


def test_a_count_far_from_the_budget_is_an_error() -> None:
    greedy = answering(select_tokens=lambda tokens: Keep(torch.arange(8).expand(2, 8) < 7))
    with pytest.raises(PlanError, match="kept 14 visual tokens where token_budget asks for 4") as caught:
        policy(("greedy", greedy), ratio=0.25).plan(ramp(2, 8))
    assert "exact: false" in str(caught.value)
    assert policy(("greedy", greedy), ratio=0.25, exact=False).plan(ramp(2, 8)).report.kept_tokens == 14


def test_the_same_policy_on_another_shape_is_solved_anew() -> None:
    made = window(0.5)
    assert [made.plan(ramp(frames, 10)).report.kept_tokens for frames in (4, 8, 4, 2)] == [20, 40, 20, 10]


def test_one_token_of_one_frame_is_kept() -> None:
    plan = policy(Norm(), Best(), ratio=0.01).plan(ramp(1, 1))
    assert plan.report.kept_tokens == 1
