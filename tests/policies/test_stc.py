"""STC's novelty score: the formula written out, and a stream that may be cut anywhere."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsieve.framework.composition import BoundStage
from vidsieve.framework.planning.inputs import StreamState
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.stage import Stage
from vidsieve.policies.stc import StreamNovelty
from vidsieve.policies.top_k import TopK
from vidsieve.policies.uniform_budget import UniformBudget
from vidsieve.testing import StageContract, video_tokens
from vidsieve.testing.samples import video_features


class TestStreamNovelty(StageContract):
    def make_stage(self) -> Stage:
        return StreamNovelty()


def plain(features: np.ndarray, memory_weight: float) -> np.ndarray:
    """The pruner as a stream of single frames, in float64: memory is the list of all means so far."""
    memory: list[np.ndarray] = []
    scores = []

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def kernel(x: np.ndarray, target: np.ndarray) -> np.ndarray:
        distance = ((x - target) ** 2).sum(axis=-1)
        return sum(np.exp(-distance / (2 * 2.0**power)) for power in range(-3, 2))

    for frame in features.astype(np.float64):
        memory.append(frame.mean(axis=0))
        seen = unit(np.mean(memory, axis=0))
        scores.append(-(kernel(unit(frame), unit(frame).mean(axis=0)) + memory_weight * kernel(unit(frame), seen)))
    return np.stack(scores)


@pytest.mark.parametrize("memory_weight", [0.0, 1.0, 2.5])
def test_scores_are_those_of_the_formula_frame_by_frame(memory_weight: float) -> None:
    features = video_features(7, 9, 24, seed=4)
    found = StreamNovelty(memory_weight=memory_weight).score_tokens(video_tokens(7, 9, 24, features=features))
    np.testing.assert_allclose(found.values.numpy(), plain(features.numpy(), memory_weight), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_cutting_the_stream_elsewhere_changes_no_score(cuts: list[int]) -> None:
    features = video_features(sum(cuts), 9, 16, seed=1)
    whole = StreamNovelty().score_tokens(video_tokens(sum(cuts), 9, 16, features=features)).values
    state, parts = None, []
    for chunk in features.split(cuts):
        found = StreamNovelty().score_tokens(video_tokens(len(chunk), 9, 16, features=chunk, state=state))
        state = found.state
        parts.append(found.values)
    assert torch.allclose(torch.cat(parts), whole, atol=1e-5)


def policy() -> Policy:
    stages = (
        BoundStage("novelty", "stc.token-score", StreamNovelty()),
        BoundStage("budget", "uniform-budget", UniformBudget()),
        BoundStage("top-k", "top-k", TopK()),
    )
    return Policy(name="stream", retention_ratio=1 / 3, stages=stages)


def test_a_stream_planned_in_chunks_keeps_what_the_whole_plan_keeps_in_constant_memory() -> None:
    features = video_features(40, 9, 16, seed=2)
    whole = policy().plan(features)
    state: StreamState | None = None
    parts, sizes, planner = [], [], policy()
    for chunk in features.split(5):
        plan = planner.plan(chunk, state=state)
        state = plan.state
        assert state is not None
        parts.append(plan.keep)
        sizes.append(state.bytes)
        assert plan.report.kept_tokens == 15
    assert torch.equal(torch.cat(parts), whole.keep)
    assert sizes == [17 * 4] * 8
    assert state is not None
    assert state.chunks == 8


def test_memory_tells_a_repeated_scene_from_a_new_one() -> None:
    scene, other = video_features(2, 9, 16, seed=0)[:1], video_features(1, 9, 16, seed=9)
    stage = StreamNovelty()
    long = stage.score_tokens(video_tokens(6, 9, 16, features=scene.expand(6, -1, -1))).state
    again = stage.score_tokens(video_tokens(1, 9, 16, features=scene, state=long)).values
    fresh = stage.score_tokens(video_tokens(1, 9, 16, features=other, state=long)).values
    alone = stage.score_tokens(video_tokens(1, 9, 16, features=other)).values
    assert fresh.mean() > again.mean()
    assert fresh.mean() > alone.mean()


def test_frames_without_a_living_token_are_not_remembered() -> None:
    features = video_features(3, 9, 16)
    keep = torch.ones(3, 9, dtype=torch.bool)
    keep[1] = False
    with_gap = StreamNovelty().score_tokens(video_tokens(3, 9, 16, features=features, keep=keep))
    without = StreamNovelty().score_tokens(video_tokens(2, 9, 16, features=features[[0, 2]]))
    assert torch.allclose(with_gap.values[[0, 2]], without.values)
    assert with_gap.state is not None
    assert with_gap.state["frames"] == 2
