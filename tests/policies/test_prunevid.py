"""PruneVid before the language model: what stands still melts over time, the rest by clusters."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies.cluster_by_hand import peaks_by_hand

from vidsieve import load_policy
from vidsieve.framework.errors import PolicyError
from vidsieve.framework.plans import Merge, Segments, apportion, tokens_to_keep
from vidsieve.framework.policy.file import read_policy
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage
from vidsieve.policies.prunevid import DpcKnnMerge
from vidsieve.policies.static_merge import StaticMerge
from vidsieve.testing import StageContract, video_tokens
from vidsieve.testing.samples import video_features


class StaticContract(StageContract):
    def token_budget(self, record: VideoTokens) -> int | None:
        return None


class TestStaticMergePairs(StaticContract):
    def make_stage(self) -> Stage:
        return StaticMerge()


class TestStaticMergeNeighbours(StaticContract):
    def make_stage(self) -> Stage:
        return StaticMerge(likeness="neighbours", threshold=0.6)


class TestDpcKnnMerge(StageContract):
    def make_stage(self) -> Stage:
        return DpcKnnMerge()


class TestDpcKnnMergeFixed(StageContract):
    def make_stage(self) -> Stage:
        return DpcKnnMerge(keep_ratio=0.4)


def pairs_of(plan: Merge) -> dict[int, int]:
    return dict(zip(plan.source.tolist(), plan.target.tolist(), strict=True))


def static_by_hand(x: np.ndarray, labels: list[int], threshold: float, likeness: str) -> dict[int, int]:
    """Segment after segment, place after place: which token melts into which."""
    frames, tokens, _ = x.shape
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True)
    into = {i: i for i in range(frames * tokens)}
    for label in set(labels):
        inside = [f for f in range(frames) if labels[f] == label]
        if len(inside) < 2:
            continue
        for token in range(tokens):
            pairs = [(a, b) for a in inside for b in inside if (a < b if likeness == "pairs" else b == a + 1)]
            alike = [float(unit[a, token] @ unit[b, token]) for a, b in pairs]
            if (np.mean(alike) if likeness == "pairs" else min(alike)) > threshold:
                into |= {f * tokens + token: inside[0] * tokens + token for f in inside}
    return into


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    threshold=st.sampled_from([0.3, 0.6, 0.8, 0.9]),
    likeness=st.sampled_from(["pairs", "neighbours"]),
    seed=st.integers(0, 99),
)
def test_static_places_equal_the_rule_written_out(
    lengths: list[int], threshold: float, likeness: str, seed: int
) -> None:
    labels = [number for number, length in enumerate(lengths) for _ in range(length)]
    features = video_features(len(labels), 7, 8, seed=seed)
    record = video_tokens(len(labels), 7, 8, features=features, segments=Segments(torch.tensor(labels)))
    plan = StaticMerge(threshold=threshold, likeness=likeness).merge_tokens(record)
    assert pairs_of(plan) == static_by_hand(features.numpy(), labels, threshold, likeness)


def test_one_change_ends_stillness_between_neighbours_but_not_in_the_mean() -> None:
    degrees = torch.deg2rad(torch.tensor([0.0, 0.0, 60.0, 60.0, 60.0, 60.0, 60.0, 60.0]))
    features = torch.stack([degrees.cos(), degrees.sin()], dim=-1)[:, None]
    record = video_tokens(8, 1, 2, features=features, segments=Segments(torch.zeros(8, dtype=torch.int64)))
    # 28 pairs, 12 of them 60° apart: the mean is (16 + 6) / 28 = 0.786
    assert set(pairs_of(StaticMerge(threshold=0.78).merge_tokens(record)).values()) == {0}
    assert set(pairs_of(StaticMerge(threshold=0.79).merge_tokens(record)).values()) == set(range(8))
    assert len(set(pairs_of(StaticMerge(threshold=0.78, likeness="neighbours").merge_tokens(record)).values())) == 8


@pytest.mark.parametrize("likeness", ["pairs", "neighbours"])
def test_dead_tokens_are_looked_past_and_the_first_living_one_takes_the_place(likeness: str) -> None:
    record = video_tokens(4, 2, 3, features=torch.ones(4, 2, 3), segments=Segments(torch.tensor([0, 0, 0, 1])))
    keep = record.keep.clone()
    keep[0, 0], keep[1, 1] = False, False
    plan = StaticMerge(likeness=likeness).merge_tokens(replace(record, keep=keep))
    assert pairs_of(plan) == {1: 1, 2: 2, 4: 2, 5: 1, 6: 6, 7: 7}


def test_a_count_by_content_cannot_answer_for_a_ratio() -> None:
    text = "{format: 1, name: t, retention_ratio: 0.5, stages: [{use: fixed-windows}, {use: static-merge}]}"
    with pytest.raises(PolicyError, match="put a stage that counts behind it"):
        read_policy(text, "t.yaml").plan(video_features(4, 4, 4))


def test_without_a_ratio_it_stands_alone_and_says_how_much_was_left() -> None:
    text = "{format: 1, name: t, stages: [{use: fixed-windows, frames: 4}, {use: static-merge}]}"
    features = torch.ones(8, 3, 4)
    features[:4, 2] = torch.eye(4)
    report = read_policy(text, "t.yaml").plan(features).report
    assert report.per_frame == ((3, 1, 1, 1, 3, 0, 0, 0),)


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(2, 16), ratio=st.sampled_from([0.2, 0.5, 0.7]), seed=st.integers(0, 99))
def test_clusters_equal_the_method_written_out(tokens: int, ratio: float, seed: int) -> None:
    features = video_features(2, tokens, 6, seed=seed)
    merged = torch.zeros(2, tokens, dtype=torch.bool)
    merged[0, ::3] = True
    record = video_tokens(2, tokens, 6, features=features, weight=torch.where(merged, 4.0, 1.0))
    plan = DpcKnnMerge(keep_ratio=ratio).merge_tokens(record)
    groups = [(0, ~merged[0]), (0, merged[0]), (1, ~merged[1])]
    sizes = [int(mask.sum()) for _, mask in groups]
    counts = apportion(torch.tensor(sizes).double(), tokens_to_keep(2 * tokens, ratio), torch.tensor(sizes)).tolist()
    expected = {}
    for (frame, mask), count in zip(groups, counts, strict=True):
        places = mask.nonzero().flatten().tolist()
        if count:
            joins = peaks_by_hand(features[frame, mask].numpy(), count, 7)[1]
            expected |= {frame * tokens + places[i]: frame * tokens + places[j] for i, j in enumerate(joins)}
    assert pairs_of(plan) == expected
    assert plan.weight is not None and (plan.weight == 1).all()


@pytest.mark.filterwarnings("ignore:.*removed none of")
@settings(max_examples=40, deadline=None)
@given(frames=st.integers(1, 9), tokens=st.integers(1, 20), ratio=st.floats(0.02, 1.0), seed=st.integers(0, 99))
def test_the_ratio_is_exact_unless_the_static_merge_leaves_fewer(
    frames: int, tokens: int, ratio: float, seed: int
) -> None:
    plan = load_policy("prunevid", retention_ratio=ratio).plan(video_features(frames, tokens, 6, seed=seed))
    wanted, kept = tokens_to_keep(frames * tokens, ratio), int(plan.keep.sum())
    assert kept == wanted or (kept < wanted and any("fewer than" in note for note in plan.report.notes))


def test_a_still_video_melts_to_one_frame_and_says_it_is_fewer_than_asked() -> None:
    plan = load_policy("prunevid", retention_ratio=0.5).plan(video_features(1, 6, 8).repeat(8, 1, 1))
    assert plan.report.per_frame == ((6, 0, 0, 0, 0, 0, 0, 0),)
    assert plan.weight.tolist() == [8.0] * 6
    assert "fewer than the 24 asked" in plan.report.notes[0]
