"""ToMe's matching: who merges with whom, weights, counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsieve import load_policy
from vidsieve.framework.errors import RetentionError
from vidsieve.framework.plans import Budget, tokens_to_keep
from vidsieve.framework.records import VideoShape
from vidsieve.framework.stage import Stage
from vidsieve.policies.tome import ToMeMerge
from vidsieve.testing import StageContract, video_tokens
from vidsieve.testing.samples import video_features


class TestToMe(StageContract):
    def make_stage(self) -> Stage:
        return ToMeMerge()


class TestToMeFixed(StageContract):
    def make_stage(self) -> Stage:
        return ToMeMerge(keep_ratio=0.3)


def plain_tome(x: np.ndarray, count: int) -> tuple[list[int], np.ndarray, list[int]]:
    """One frame, pair after pair: (places that stay, their means, how many originals each stands for)."""
    alive = list(range(len(x)))
    mean = {place: x[place].astype(np.float64) for place in alive}
    size = dict.fromkeys(alive, 1)
    while len(alive) > count:
        a, b = alive[::2], alive[1::2]
        edges = []
        for i in a:
            cosine = [mean[i] @ mean[j] / np.linalg.norm(mean[i]) / np.linalg.norm(mean[j]) for j in b]
            edges.append((max(cosine), i, b[int(np.argmax(cosine))]))
        edges.sort(key=lambda edge: -edge[0])
        for _, i, j in edges[: min(len(alive) - count, len(alive) // 2)]:
            mean[j] = (mean[j] * size[j] + mean[i] * size[i]) / (size[i] + size[j])
            size[j] += size[i]
            alive.remove(i)
    return alive, np.stack([mean[place] for place in alive]), [size[place] for place in alive]


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(2, 20), ratio=st.sampled_from([0.1, 0.3, 0.5, 0.8]), seed=st.integers(0, 99))
def test_merges_equal_the_paper_written_out(tokens: int, ratio: float, seed: int) -> None:
    features = video_features(3, tokens, 8, seed=seed)
    count = max(1, int(ratio * tokens))
    plan = load_policy("tome", retention_ratio=count / tokens).plan(features)
    for frame in range(3):
        places, means, sizes = plain_tome(features[frame].numpy(), count)
        rows = plan.index // tokens == frame
        assert (plan.index[rows] % tokens).tolist() == places
        assert plan.weight[rows].tolist() == pytest.approx(sizes)
        assert np.allclose(plan.features[rows].numpy(), means, atol=1e-5)


def test_the_most_similar_pair_merges_first_and_stands_where_its_odd_token_stood() -> None:
    features = torch.eye(4)[None] + 0.0
    features[0, 2] = torch.tensor([0.0, 0.0, 0.1, 1.0])  # like token 3
    plan = load_policy("tome", retention_ratio=0.75).plan(features)
    assert plan.index.tolist() == [0, 1, 3]
    assert torch.allclose(plan.features[2], torch.tensor([0.0, 0.0, 0.05, 1.0]))
    assert plan.weight.tolist() == [1, 1, 2]


def test_a_token_that_stands_for_many_counts_as_many() -> None:
    record = video_tokens(1, 2, 2, features=torch.tensor([[[0.0, 4.0], [4.0, 0.0]]]))
    record = replace(record, weight=torch.tensor([[3.0, 1.0]]), token_budget=1)
    plan = ToMeMerge().merge_tokens(record)
    assert plan.weight is None
    assert (plan.source.tolist(), plan.target.tolist()) == ([0, 1], [1, 1])
    # three tokens in a row: in the second round the pair weighs as two of its kind
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]])
    plan2 = load_policy("tome", retention_ratio=1 / 3).plan(features)
    assert torch.allclose(plan2.features[0], features[0].mean(dim=0))


@settings(max_examples=40, deadline=None)
@given(frames=st.integers(1, 9), tokens=st.integers(1, 20), ratio=st.floats(0.02, 1.0))
def test_the_ratio_is_exact_or_refused_below_one_token_a_frame(frames: int, tokens: int, ratio: float) -> None:
    policy, features = load_policy("tome", retention_ratio=ratio), video_features(frames, tokens, 6)
    wanted = tokens_to_keep(frames * tokens, ratio)
    if wanted < frames:
        with pytest.raises(RetentionError, match="reaches"):
            policy.plan(features)
    else:
        plan = policy.plan(features)
        assert int(plan.keep.sum()) == wanted
        assert int(plan.weight.sum()) == frames * tokens


def test_a_fixed_ratio_leaves_what_it_says_also_after_drops() -> None:
    record = video_tokens(3, 10, 6)
    keep = record.keep.clone()
    keep[0], keep[1, 4:] = False, False
    stage = ToMeMerge(keep_ratio=0.4)
    plan = stage.merge_tokens(replace(record, keep=keep))
    low, high = stage.attainable(VideoShape(3, 10, 1, (0, 4, 10)))
    assert low == high
    assert len(plan.target.unique()) == round(low * 14) == 5


def test_a_frame_budget_steers_it_and_no_frame_is_left_empty() -> None:
    record = replace(video_tokens(3, 10, 6), budget=Budget(share=torch.tensor([0.0, 1.0, 3.0])), token_budget=15)
    frames = ToMeMerge().merge_tokens(record).target.unique() // 10
    # one each, and the other twelve as 0 to 1 to 3
    assert torch.bincount(frames).tolist() == [1, 4, 10]


def test_identical_tokens_merge_from_the_front() -> None:
    plan = load_policy("tome", retention_ratio=0.5).plan(torch.ones(1, 6, 3))
    assert plan.index.tolist() == [1, 3, 5]
    assert plan.weight.tolist() == [4, 1, 1]
