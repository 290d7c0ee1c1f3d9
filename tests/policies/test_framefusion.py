"""FrameFusion: runs of alike tokens by hand, against a slow direct computation, and what stays affordable."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies.framefusion_by_hand import by_hand

from vidsieve import load_policy
from vidsieve.framework.planning.attainable import LayerCounts, prune_points
from vidsieve.framework.stage import Stage
from vidsieve.policies.framefusion import FrameFusionMerge, FrameFusionMergeInside, melting, runs
from vidsieve.testing import StageContract, rank_layer
from vidsieve.testing.samples import video_features, video_tokens


class TestFrameFusionMerge(StageContract):
    def make_stage(self) -> Stage:
        return FrameFusionMerge()


class TestFrameFusionMergeInside(StageContract):
    def make_stage(self) -> Stage:
        return FrameFusionMergeInside()


@settings(max_examples=40, deadline=None)
@given(
    frames=st.integers(1, 6),
    tokens=st.integers(1, 5),
    similarity=st.floats(0.0, 1.0),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 999),
)
def test_it_is_the_slow_rule(frames: int, tokens: int, similarity: float, share: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    index = torch.arange(frames * tokens)[torch.rand(frames * tokens, generator=draw) < 0.8]
    states = video_features(frames, tokens, 6, seed=seed).flatten(0, 1)[index]
    place, most = index % tokens, int(share * len(index))
    if len(index):
        assert runs(states, place, similarity, most).tolist() == by_hand(states, place.tolist(), similarity, most)


def test_a_run_melts_into_the_token_in_front_of_it() -> None:
    # one place in five frames: same, same, new, same as that; the other place never alike
    left = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.1], [0.0, 1.0], [0.0, 5.0]])
    right = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [1.0, 0.0]])
    features = torch.stack([left, right], dim=1)
    record = video_tokens(5, 2, 2, features=features)
    plan = FrameFusionMerge().merge_tokens(record)
    assert plan.target.tolist() == [0, 1, 0, 3, 0, 5, 6, 7, 6, 9]
    report = load_policy("framefusion", retention_ratio=0.5).plan(features)
    assert report.index.tolist() == [0, 1, 3, 5, 6, 7, 9]
    assert report.features[0].tolist() == pytest.approx([2.0, 0.1 / 3])
    assert report.weight.tolist() == [3, 1, 1, 1, 2, 1, 1]


def test_dead_tokens_are_passed_over() -> None:
    features = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 0.0]]])
    keep = torch.tensor([[True], [False], [True]])
    plan = FrameFusionMerge().merge_tokens(video_tokens(3, 1, 2, features=features, keep=keep))
    assert plan.source.tolist() == [0, 2]
    assert plan.target.tolist() == [0, 0]


def test_means_do_not_count_originals() -> None:
    features = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]]])
    record = video_tokens(2, 1, 2, features=features, weight=torch.tensor([[9.0], [1.0]]))
    assert FrameFusionMerge().merge_tokens(record).weight.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("alive", "afford", "most"),
    [(10, None, 10), (10, 3.0, 7), (10, 3.2, 6), (10, 12.0, 0), (100, 29.000000000000004, 71)],
)
def test_no_more_melt_than_the_ratio_asks_for(alive: int, afford: float | None, most: int) -> None:
    assert melting(alive, afford) == most


def test_before_the_model_the_ratio_bounds_what_melts() -> None:
    features = torch.ones(10, 4, 3)
    for ratio, left in ((None, 4), (0.3, 12), (0.01, 4)):
        record = replace(video_tokens(10, 4, 3, features=features), retention_ratio=ratio)
        assert FrameFusionMerge().merge_tokens(record).target.unique().numel() == left


def test_inside_the_model_what_layers_can_afford_bounds_what_melts() -> None:
    attention, hidden = torch.zeros(1, 1, 12), torch.ones(12, 3)
    token = torch.arange(12) % 3
    shown = {"hidden": hidden, "token": token, "frame": torch.arange(12) // 3}
    assert rank_layer(FrameFusionMergeInside(), attention, **shown).tolist() == [0, 1, 2]
    assert len(rank_layer(FrameFusionMergeInside(), attention, afford=7.5, **shown)) == 8
    assert len(rank_layer(FrameFusionMergeInside(), attention, afford=99.0, **shown)) == 12


def through(offered: int, layers: int, leaves: list[int], ratio: float) -> LayerCounts:
    """A video through the published policy, when its merging points leave these counts."""
    counts = LayerCounts(
        load_policy("framefusion", retention_ratio=ratio), baseline=1000, offered=offered, layers=layers
    )
    for point in prune_points(counts.policy, layers):
        _, count = counts.ask(point)
        counts.leave(min(counts.alive, leaves.pop(0)) if count is None else count)
    counts.enter(layers - 1)
    return counts


def test_the_pruning_takes_what_merging_left_too_many() -> None:
    assert 0.3 - 1e-3 < through(900, 28, [800, 700], 0.3).ratio <= 0.3
    found = through(400, 28, [350, 340], 0.3)
    # 8400 in all: what is left of it after 400, 350 and 340 is 292.4 for each of the other 25
    assert found.entered == [400, 350, 340] + [292] * 25
    assert 400 + 350 + 340 + 25 * 292 <= 8400 < 400 + 350 + 340 + 25 * 293


def test_afford_is_the_cost_left_for_each_coming_layer() -> None:
    counts = LayerCounts(load_policy("framefusion", retention_ratio=0.3), baseline=1000, offered=400, layers=28)
    assert counts.afford == pytest.approx(300)
    counts.enter(0)
    assert counts.afford == pytest.approx((8400 - 400) / 27)
    free = LayerCounts(load_policy("fastv-released"), baseline=1000, offered=400, layers=28)
    assert free.afford is None
