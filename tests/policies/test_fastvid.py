"""FastVID: what is salient, where anchors stand, what they take in, and the exact total."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies.cluster_by_hand import peaks_by_hand

from vidsieve import load_policy
from vidsieve.framework.plans import Scores, Segments, melt, tokens_to_keep
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage
from vidsieve.policies.fastvid import FastVIDMerge, shared_out
from vidsieve.testing import StageContract, video_tokens
from vidsieve.testing.samples import video_features
from vidsieve.testing.stage_contract import same


class TestFastVID(StageContract):
    def make_stage(self) -> Stage:
        return FastVIDMerge()


class TestFastVIDWithAttention(StageContract):
    def make_stage(self) -> Stage:
        return FastVIDMerge(keep_ratio=0.4)

    def make_tokens(self, frames: int, tokens: int, dim: int) -> VideoTokens:
        attention = torch.rand(frames, tokens, generator=torch.Generator().manual_seed(3))
        return replace(super().make_tokens(frames, tokens, dim), signals={"vision_attention": attention})


def fastvid_by_hand(
    x: np.ndarray, attention: np.ndarray, lengths: list[int], ratio: float, d: float, p: int, beta: float
) -> dict[int, np.ndarray]:
    """Frame after frame and anchor after anchor, counted as the released code does: flat place -> feature."""
    frames, tokens, _ = x.shape
    x = x.astype(np.float64)
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    kept = int(tokens * ratio)
    salient_count = kept - int(kept * d)
    context = kept - salient_count
    out, loose = {}, []
    for frame in range(frames):
        salient = np.argsort(-attention[frame], kind="stable")[:salient_count].tolist()
        out |= {frame * tokens + token: x[frame, token] for token in salient}
        loose.append([token for token in range(tokens) if token not in salient])
    for start, end in pairwise(np.cumsum([0, *lengths]).tolist()):
        anchor_frames = [frame for frame in range(start, end) if (end - 1 - frame) % p == 0]
        each = context * (end - start) // len(anchor_frames)
        anchors = {}
        for frame in anchor_frames:
            strongest = peaks_by_hand(x[frame, loose[frame]].astype(np.float32), each, 4)[0]
            anchors[frame] = [loose[frame][i] for i in strongest]
        everyone = {(frame, token) for frame in anchor_frames for token in anchors[frame]}
        for frame in anchor_frames:
            took = {token: [x[frame, token]] for token in anchors[frame]}
            for other in range(start, end):
                for token in loose[other]:
                    if (other, token) not in everyone:
                        best = max(anchors[frame], key=lambda a: unit[other, token] @ unit[frame, a])
                        took[best].append(x[other, token])
            for token, group in took.items():
                w = max(beta, 1 / (len(group) + 1))
                out[frame * tokens + token] = w * x[frame, token] + (1 - w) * np.mean(group, axis=0)
    return out


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([1, 2, 3, 4, 8]), min_size=1, max_size=3),
    beta=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    seed=st.integers(0, 99),
)
def test_the_merge_equals_the_released_rules_written_out(lengths: list[int], beta: float, seed: int) -> None:
    frames = sum(lengths)
    features = video_features(frames, 20, 8, seed=seed)
    attention = torch.rand(frames, 20, generator=torch.Generator().manual_seed(seed))
    labels = torch.tensor([number for number, length in enumerate(lengths) for _ in range(length)])
    record = video_tokens(frames, 20, 8, features=features, segments=Segments(labels))
    record = replace(record, signals={"vision_attention": attention}, token_budget=5 * frames)
    plan = FastVIDMerge(centre_weight=beta).merge_tokens(record)
    step, weight = melt(plan, record.weight.flatten())
    expected = fastvid_by_hand(features.numpy(), attention.numpy(), lengths, 0.25, 0.4, 4, beta)
    assert step.targets.nonzero().flatten().tolist() == sorted(expected)
    rows = step.apply(features.flatten(0, 1))[step.targets]
    assert np.allclose(rows.numpy(), np.stack([expected[place] for place in sorted(expected)]), atol=1e-5)
    assert weight[step.targets].sum() == pytest.approx(frames * 20)


def test_anchor_frames_are_counted_from_the_end_of_a_segment() -> None:
    alive, segment = torch.full((7,), 20), torch.tensor([0, 0, 0, 0, 0, 1, 2])
    salient, anchors = shared_out(alive, segment, 35, 14, 4)
    assert salient.tolist() == [3] * 7
    # two a frame: ten for the two anchor frames of the first segment
    assert anchors.tolist() == [5, 0, 0, 0, 5, 2, 2]


def test_dead_frames_are_no_anchor_frames() -> None:
    alive, segment = torch.tensor([20, 20, 20, 0, 0]), torch.zeros(5, dtype=torch.int64)
    salient, anchors = shared_out(alive, segment, 15, 6, 2)
    assert salient.tolist() == [3, 3, 3, 0, 0]
    assert anchors.tolist() == [3, 0, 3, 0, 0]


@settings(max_examples=60, deadline=None)
@given(
    alive=st.lists(st.integers(0, 12), min_size=1, max_size=10),
    ratio=st.floats(0.02, 1.0),
    d=st.sampled_from([0.0, 0.4, 1.0]),
    every=st.integers(2, 5),
    cuts=st.integers(1, 4),
)
def test_what_finds_no_room_in_anchor_frames_becomes_salient(
    alive: list[int], ratio: float, d: float, every: int, cuts: int
) -> None:
    offered = torch.tensor(alive)
    total = tokens_to_keep(sum(alive), ratio)
    salient, anchors = shared_out(offered, torch.arange(len(alive)) // cuts, total, int(total * d), every)
    assert int(salient.sum() + anchors.sum()) == total
    assert (salient + anchors <= offered).all()
    assert (salient >= 0).all() and (anchors >= 0).all()


@settings(max_examples=30, deadline=None)
@given(frames=st.integers(1, 12), tokens=st.integers(1, 20), ratio=st.floats(0.02, 1.0), seed=st.integers(0, 99))
def test_totals_are_exact(frames: int, tokens: int, ratio: float, seed: int) -> None:
    plan = load_policy("fastvid", retention_ratio=ratio).plan(video_features(frames, tokens, 6, seed=seed))
    assert int(plan.keep.sum()) == tokens_to_keep(frames * tokens, ratio)


def test_attention_goes_before_scores_and_scores_before_density() -> None:
    features = video_features(2, 12, 8)
    attention, scores = torch.rand(2, 12), torch.rand(2, 12)
    record = video_tokens(2, 12, 8, features=features, segments=Segments(torch.tensor([0, 1])), token_budget=6)
    stage = FastVIDMerge(context_ratio=0.0)

    def kept(**fields: object) -> list[int]:
        return sorted(stage.merge_tokens(replace(record, **fields)).target.tolist())

    def best(values: torch.Tensor) -> list[int]:
        return sorted((values.topk(3, dim=1).indices + torch.tensor([[0], [12]])).flatten().tolist())

    signals = {"vision_attention": attention}
    assert kept(signals=signals, scores=Scores(scores)) == best(attention)
    assert kept(scores=Scores(scores)) == best(scores)
    by_hand = [peaks_by_hand(features[frame].numpy(), 3, 4)[0] for frame in range(2)]
    assert kept() == by_hand[0] + [12 + place for place in by_hand[1]]


def test_the_signal_is_wanted_not_needed() -> None:
    policy = load_policy("fastvid")
    assert "vision_attention" in policy.wants()
    assert policy.needs() == frozenset()


def test_attention_to_dead_tokens_does_not_matter() -> None:
    record = video_tokens(3, 8, 6, segments=Segments(torch.tensor([0, 0, 1])))
    keep = record.keep.clone()
    keep.view(-1)[::3] = False
    plans = []
    for poison in (0.0, torch.nan, torch.inf):
        signals = {"vision_attention": torch.linspace(0, 1, 24).view(3, 8).masked_fill(~keep, poison)}
        plans.append(FastVIDMerge(keep_ratio=0.5).merge_tokens(replace(record, keep=keep, signals=signals)))
    assert all(same(plans[0], plan) for plan in plans)
