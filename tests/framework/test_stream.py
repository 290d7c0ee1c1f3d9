"""A video in chunks: what a hook says in `state` comes back to it with the next chunk, and to nobody else."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vidsieve.framework.composition import BoundStage
from vidsieve.framework.errors import InputError, PlanError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Budget, Keep, Scores
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage


class Counts(Stage):
    """Count chunks in both of its hooks, and keep everything."""

    @hookimpl
    def budget_frames(self, tokens: VideoTokens) -> Budget:
        SEEN.append(("budget", tokens.state, float(torch.rand((), generator=tokens.rng))))
        before = tokens.state["chunks"] if tokens.state else torch.zeros(())
        return Budget(share=torch.ones(len(tokens.keep)), state={"chunks": before + 1})

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        SEEN.append(("select", tokens.state, 0.0))
        before = tokens.state["tens"] if tokens.state else torch.zeros(())
        return Keep(tokens.keep, state={"tens": before + 10})

    reads = ("budget",)


class Wrong(Stage):
    """Remember what is no tensor."""

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        state: Any = {"features": [1, 2]}
        object.__setattr__(plan := Scores(torch.ones(tokens.keep.shape)), "state", state)
        return plan


class Top(Stage):
    reads_if_made = ("scores",)

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        return Keep(tokens.keep)


SEEN: list[tuple[str, Any, float]] = []
FEATURES = torch.arange(24.0).view(3, 2, 4)


def policy(*stages: Stage, **fields: Any) -> Policy:
    bound = tuple(BoundStage(f"s{i}", f"s{i}", stage) for i, stage in enumerate(stages))
    return Policy(name="stream", retention_ratio=1.0, stages=bound, **fields)


def test_each_hook_is_shown_what_it_said_last_and_the_first_chunk_nothing() -> None:
    SEEN.clear()
    planner, state = policy(Counts()), None
    for _ in range(3):
        state = planner.plan(FEATURES, state=state).state
    shown: list[Tensor | None] = [None if one is None else next(iter(one.values())) for _, one, _ in SEEN]
    assert [None if one is None else one.item() for one in shown] == [None, None, 1, 10, 2, 20]
    assert state is not None
    assert (state.chunks, {key: list(one) for key, one in state.kept.items()}) == (
        3,
        {("s0", "budget_frames"): ["chunks"], ("s0", "select_tokens"): ["tens"]},
    )


def test_chunks_draw_different_random_numbers_and_the_first_those_of_a_whole_video() -> None:
    SEEN.clear()
    planner = policy(Counts())
    first = planner.plan(FEATURES)
    planner.plan(FEATURES, state=first.state)
    planner.plan(FEATURES)
    drawn = [number for name, _, number in SEEN if name == "budget"]
    assert drawn[0] == drawn[2] != drawn[1]


def test_the_state_of_another_policy_is_refused() -> None:
    state = policy(Counts()).plan(FEATURES).state
    with pytest.raises(InputError, match=r"'stream': state was made by another policy"):
        policy(Counts(), positions="compact").plan(FEATURES, state=state)


def test_a_state_of_anything_but_tensors_is_refused() -> None:
    with pytest.raises(PlanError, match=r"'s0', score_tokens: state must be a dictionary of tensors.*got dict"):
        policy(Wrong(), Top()).plan(FEATURES)
