"""EVS: the frame before decides, the first frame stays, counts as vLLM counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsieve import load_policy
from vidsieve.framework.errors import PolicyError, RetentionError
from vidsieve.framework.plans import Scores, tokens_to_keep
from vidsieve.framework.records import VideoShape
from vidsieve.framework.stage import Stage
from vidsieve.policies.evs import Novelty, Select
from vidsieve.testing import StageContract, video_tokens
from vidsieve.testing.samples import video_features


class TestNovelty(StageContract):
    def make_stage(self) -> Stage:
        return Novelty()


class TestSelect(StageContract):
    def make_stage(self) -> Stage:
        return Select()


class TestSelectFixed(StageContract):
    def make_stage(self) -> Stage:
        return Select(drop_ratio=0.6)


def plain_evs(x: np.ndarray, q: float) -> np.ndarray:
    """Token after token: unlikeness to the frame before, then the largest ones, the first frame before all."""
    frames, tokens, _ = x.shape
    unlike = np.full((frames, tokens), 255.0)
    for frame in range(1, frames):
        for token in range(tokens):
            a, b = x[frame, token].astype(np.float64), x[frame - 1, token].astype(np.float64)
            unlike[frame, token] = 1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    count = max(tokens, int(frames * tokens * (1 - q)))
    keep = np.zeros(frames * tokens, dtype=bool)
    keep[np.argsort(-unlike.ravel(), kind="stable")[:count]] = True
    return keep.reshape(frames, tokens)


@settings(max_examples=40, deadline=None)
@given(
    frames=st.integers(1, 9),
    tokens=st.integers(1, 25),
    q=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 0.9]),
    seed=st.integers(0, 99),
)
def test_choices_equal_the_method_written_out(frames: int, tokens: int, q: float, seed: int) -> None:
    features = video_features(frames, tokens, 16, seed=seed)
    mask = load_policy("evs", settings={"evs.select.drop_ratio": q}).plan(features).keep
    assert np.array_equal(mask.numpy(), plain_evs(features.numpy(), q))


@pytest.mark.parametrize(("q", "kept"), [(0.9, 9), (0.7, 30), (0.3, 70), (0.71, 29), (0.95, 5), (0.99, 5)])
def test_counts_are_vllms_float_truncation_and_never_less_than_a_frame(q: float, kept: int) -> None:
    # 100 * (1 - 0.9) is 9.999999999999998
    low, high = Select(drop_ratio=q).attainable(VideoShape(20, 5))
    assert low == high
    assert round(low * 100) == max(kept, 5)
    policy = load_policy("evs", settings={"evs.select.drop_ratio": q})
    assert int(policy.plan(video_features(20, 5, 8)).keep.sum()) == max(kept, 5)


@settings(max_examples=40, deadline=None)
@given(frames=st.integers(1, 12), tokens=st.integers(1, 20), ratio=st.floats(0.02, 1.0))
def test_the_ratio_is_exact_or_refused_below_one_frame(frames: int, tokens: int, ratio: float) -> None:
    policy, features = load_policy("evs", retention_ratio=ratio), video_features(frames, tokens, 6)
    wanted = tokens_to_keep(frames * tokens, ratio)
    if wanted < tokens:
        with pytest.raises(RetentionError, match="reaches"):
            policy.plan(features)
    else:
        keep = policy.plan(features).keep
        assert int(keep.sum()) == wanted
        assert keep[0].all()


def test_only_what_changed_is_kept() -> None:
    features = torch.ones(4, 6, 2)
    features[2:, 4, 0] = -1.0  # changes once, then stands still
    keep = load_policy("evs", retention_ratio=7 / 24).plan(features).keep
    assert keep[0].all()
    assert keep[1:].nonzero().tolist() == [[1, 4]]


def test_a_still_video_ties_to_the_lower_index() -> None:
    keep = load_policy("evs", retention_ratio=0.5).plan(torch.ones(4, 3, 5)).keep
    assert torch.equal(keep, torch.tensor([True, True, False, False])[:, None].expand(4, 3))


def test_after_dropped_frames_the_first_living_one_is_whole_and_its_ties_with_infinity_win() -> None:
    record = video_tokens(3, 4, 6)
    keep = record.keep.clone()
    keep[0], keep[1, 2] = False, False
    scores = Scores(torch.full((3, 4), torch.inf))
    plan = Select().select_tokens(replace(record, keep=keep, scores=scores, token_budget=4))
    assert plan.mask.nonzero().tolist() == [[1, 0], [1, 1], [1, 3], [2, 0]]
    assert plan.protected is not None
    assert torch.equal(plan.protected[1], keep[1])


def test_a_count_that_nobody_decides_is_an_error() -> None:
    record = video_tokens(2, 4, 4)
    with pytest.raises(PolicyError, match="set drop_ratio"):
        Select().select_tokens(replace(record, scores=Scores(torch.rand(2, 4))))
