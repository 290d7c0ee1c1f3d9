"""The contract lets good stages pass, and each bad one fails the test that is about its fault."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from framework.kit import Best, Even, Norm, Pairs, answering
from torch import Tensor

from vidsieve.framework.errors import PlanError
from vidsieve.framework.plans import Budget, Keep, Merge, Scores
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.testing import StageContract


class TestNorm(StageContract):
    def make_stage(self) -> Stage:
        return Norm()


class TestEven(StageContract):
    def make_stage(self) -> Stage:
        return Even()


class TestPairs(StageContract):
    def make_stage(self) -> Stage:
        return Pairs()


class TestBestWithABudgetFromTheCore(StageContract):
    def make_stage(self) -> Stage:
        return Best()


class TestBestWithItsOwnRatio(StageContract):
    def make_stage(self) -> Stage:
        return Best(keep_ratio=0.3)


class TestChance(StageContract):
    def make_stage(self) -> Stage:
        return answering(score_tokens=lambda tokens: Scores(torch.rand(tokens.keep.shape, generator=tokens.rng)))


LAWS = [name for name, _ in inspect.getmembers(StageContract, inspect.isfunction) if name.startswith("test_")]


def broken_laws(stage: Stage) -> set[str]:
    """Names of the contract's tests that the stage fails."""

    class Contract(StageContract):
        def make_stage(self) -> Stage:
            return stage

    failed = set()
    for law in LAWS:
        try:
            getattr(Contract(), law)()
        except (AssertionError, PlanError):
            failed.add(law)
        except pytest.skip.Exception:
            continue
    return failed


def first_channel(tokens: VideoTokens) -> Tensor:
    return tokens.features[..., 0].float()


def counter() -> Callable[[VideoTokens], Scores]:
    """Scores that depend on how often they were asked for."""
    calls = [0]

    def score(tokens: VideoTokens) -> Scores:
        calls[0] += 1
        return Scores(first_channel(tokens) + calls[0])

    return score


def centre_of_all(tokens: VideoTokens) -> Scores:
    """Compares with the mean over all tokens, dead ones too."""
    return Scores(first_channel(tokens) - first_channel(tokens).mean())


def frames_by_all(tokens: VideoTokens) -> Budget:
    return Budget(share=torch.nan_to_num(first_channel(tokens).abs().sum(dim=1), nan=1.0, posinf=1.0))


def in_the_models_dtype(tokens: VideoTokens) -> Scores:
    return Scores((tokens.features * tokens.features).sum(dim=-1).float())


def flat_places(tokens: VideoTokens) -> Tensor:
    return torch.arange(tokens.keep.numel()).view(tokens.keep.shape)


def writes_into_features(tokens: VideoTokens) -> Scores:
    tokens.features.mul_(0.5)
    return Scores(torch.ones(tokens.keep.shape))


def writes_into_keep(tokens: VideoTokens) -> Keep:
    tokens.keep[0, 0] = False
    return Keep(tokens.keep.clone())


def revives(tokens: VideoTokens) -> Keep:
    return Keep(torch.ones_like(tokens.keep))


BAD: list[tuple[str, Stage, str]] = [
    ("nothing", answering(score_tokens=None), "test_plans_pass_the_door"),
    ("another plan", answering(score_tokens=lambda t: Keep(t.keep)), "test_plans_pass_the_door"),
    ("nan", answering(score_tokens=lambda t: Scores(torch.full(t.keep.shape, torch.nan))), "test_plans_pass_the_door"),
    ("double", answering(score_tokens=lambda t: Scores(first_channel(t).double())), "test_plans_pass_the_door"),
    ("transposed", answering(score_tokens=lambda t: Scores(first_channel(t).T)), "test_plans_pass_the_door"),
    ("chain", answering(merge_tokens=lambda t: Merge(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 1]))),
     "test_plans_pass_the_door"),
    ("no seed", answering(score_tokens=lambda t: Scores(torch.rand(t.keep.shape))), "test_same_input_same_plan"),
    ("memory", answering(score_tokens=counter()), "test_same_input_same_plan"),
    ("dead centre", answering(score_tokens=centre_of_all), "test_dead_tokens_have_no_influence"),
    ("dead frames", answering(budget_frames=frames_by_all), "test_dead_tokens_have_no_influence"),
    ("bfloat16", answering(score_tokens=in_the_models_dtype), "test_scores_do_not_depend_on_the_models_dtype"),
    ("features", answering(score_tokens=writes_into_features), "test_input_is_left_alone"),
    ("keep", answering(select_tokens=writes_into_keep), "test_input_is_left_alone"),
    ("reach", answering(score_tokens=lambda t: Scores(first_channel(t)), attainable=(0.9, 0.1)),
     "test_attainable_is_a_range_of_shares"),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "law"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_stage_fails_the_law_it_breaks(stage: Stage, law: str) -> None:
    assert law in broken_laws(stage)


def test_a_stage_that_revives_the_dead_fails() -> None:
    assert broken_laws(answering(select_tokens=revives))


def test_a_stage_that_misses_its_own_count_fails() -> None:
    class Half(Best):
        """Says a half, leaves a quarter."""

        keep_ratio: float | None = tunable(None, low=0.01, high=1.0)

        def attainable(self, shape: Any) -> tuple[float, float]:
            return (0.9, 0.9)

    assert "test_a_fixed_count_is_what_it_attains" in broken_laws(Half(keep_ratio=0.25))


def test_a_closer_that_ignores_its_budget_fails() -> None:
    ignores = answering(select_tokens=lambda tokens: Keep(tokens.keep))
    assert broken_laws(ignores) == {"test_as_the_last_stage_it_leaves_what_is_asked"}
    melts = answering(merge_tokens=lambda tokens: Merge.assign(torch.where(tokens.keep, flat_places(tokens), -1)))
    assert broken_laws(melts) == {"test_as_the_last_stage_it_leaves_what_is_asked"}


def test_good_stages_break_no_law() -> None:
    for stage in (Norm(), Even(), Pairs(), Best(), Best(keep_ratio=0.3)):
        assert broken_laws(stage) == set()


def test_a_contract_without_a_stage_says_what_to_write() -> None:
    with pytest.raises(TypeError, match=r"StageContract must implement make_stage\(\)"):
        StageContract().make_stage()
