"""HoliTom before the language model: the best cuts, attention for what moves, clusters for what stands still."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies.cluster_by_hand import peaks_by_hand

from vidsieve import load_policy
from vidsieve.framework.plans import Scores, apportion, melt, tokens_to_keep
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage
from vidsieve.policies.holitom import HoliTomMerge, HoliTomSegments, best_cuts, saved
from vidsieve.testing import StageContract, video_tokens
from vidsieve.testing.samples import video_features
from vidsieve.testing.stage_contract import same


class TestHoliTomSegments(StageContract):
    def make_stage(self) -> Stage:
        return HoliTomSegments(threshold=0.6)


class TestHoliTomMerge(StageContract):
    def make_stage(self) -> Stage:
        return HoliTomMerge()


class TestHoliTomMergeWithAttention(StageContract):
    def make_stage(self) -> Stage:
        return HoliTomMerge(keep_ratio=0.3)

    def make_tokens(self, frames: int, tokens: int, dim: int) -> VideoTokens:
        attention = torch.rand(frames, tokens, generator=torch.Generator().manual_seed(3))
        return replace(super().make_tokens(frames, tokens, dim), signals={"vision_attention": attention})


def saving(still: np.ndarray, start: int, end: int) -> int:
    """Tokens saved by one segment, both ends included."""
    return int(still[start:end].all(axis=0).sum()) * (end - start)


def released_cuts(still: np.ndarray) -> list[int]:
    """The released recurrence, frame after frame and window after window."""
    frames = len(still) + 1
    best, begin = [0] * frames, [0] * frames
    for i in range(frames):
        most, at = (best[i - 1] if i else 0), i
        for window in range(2, i + 2):
            j = i - window
            value = (best[j] if j >= 0 else 0) + saving(still, j + 1, i)
            if value > most:
                most, at = value, j + 1
        best[i], begin[i] = most, at
    cuts, i = [], frames - 1
    while i >= 0:
        cuts.append(begin[i])
        i = begin[i] - 1
    return cuts[::-1]


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(1, 8), tokens=st.integers(1, 6), share=st.sampled_from([0.3, 0.6, 0.9]), seed=st.integers(0, 99)
)
def test_no_other_cuts_save_more_and_they_are_those_of_the_released_recurrence(
    frames: int, tokens: int, share: float, seed: int
) -> None:
    still = np.random.default_rng(seed).random((frames - 1, tokens)) < share
    cuts = best_cuts(saved(torch.from_numpy(still)).tolist())
    assert cuts == released_cuts(still)

    def total(starts: list[int]) -> int:
        return sum(saving(still, a, b - 1) for a, b in zip(starts, [*starts[1:], frames], strict=True))

    ways = [[0, *(i + 1 for i, cut in enumerate(way) if cut)] for way in product([False, True], repeat=frames - 1)]
    assert total(cuts) == max(map(total, ways))


def test_a_scene_of_stillness_is_a_segment_and_moving_frames_stand_alone() -> None:
    scene = video_features(1, 6, 32, seed=1)
    moving = torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(2))
    features = torch.cat([scene.repeat(3, 1, 1), moving, scene.repeat(2, 1, 1)])
    labels = HoliTomSegments().segment_frames(video_tokens(8, 6, 32, features=features)).labels.tolist()
    assert labels == [0, 0, 0, 1, 2, 3, 4, 4]


def test_a_dead_token_ends_stillness() -> None:
    record = video_tokens(4, 1, 3, features=torch.ones(4, 1, 3))
    keep = record.keep.clone()
    keep[1] = False
    labels = HoliTomSegments().segment_frames(replace(record, keep=keep)).labels.tolist()
    assert labels == [0, 1, 2, 2]


def merged_by_hand(
    x: np.ndarray, weight: np.ndarray, attention: np.ndarray | None, total: int, beta: float
) -> dict[int, np.ndarray]:
    """Group after group: flat place -> feature."""
    frames, tokens, _ = x.shape
    groups = [(f, np.flatnonzero((weight[f] > 1) == still)) for f in range(frames) for still in (False, True)]
    sizes = torch.tensor([len(places) for _, places in groups])
    out = {}
    for number, ((frame, places), count) in enumerate(
        zip(groups, apportion(sizes.double(), total, sizes).tolist(), strict=True)
    ):
        if attention is not None and number % 2 == 0:
            chosen = places[np.argsort(-attention[frame, places], kind="stable")[:count]]
            out |= {frame * tokens + int(place): x[frame, place] for place in chosen}
        elif count:
            centres, joins = peaks_by_hand(x[frame, places], count, min(7, count))
            for centre in centres:
                others = [x[frame, places[i]] for i, join in enumerate(joins) if join == centre and i != centre]
                own = x[frame, places[centre]]
                mean = beta * own + (1 - beta) * np.mean(others, axis=0) if others else own
                out[frame * tokens + int(places[centre])] = mean
    return out


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(2, 16),
    ratio=st.sampled_from([0.2, 0.5, 0.8]),
    beta=st.sampled_from([0.1, 0.6, 1.0]),
    attends=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_merge_equals_the_released_rules_written_out(
    tokens: int, ratio: float, beta: float, attends: bool, seed: int
) -> None:
    features = video_features(2, tokens, 6, seed=seed)
    attention = torch.rand(2, tokens, generator=torch.Generator().manual_seed(seed))
    weight = torch.ones(2, tokens)
    weight[0, ::2] = 3.0
    record = video_tokens(2, tokens, 6, features=features, weight=weight)
    record = replace(record, signals={"vision_attention": attention} if attends else {})
    plan = HoliTomMerge(keep_ratio=ratio, centre_weight=beta).merge_tokens(record)
    total = tokens_to_keep(2 * tokens, ratio)
    given_attention = attention.numpy() if attends else None
    expected = merged_by_hand(features.numpy(), weight.numpy(), given_attention, total, beta)
    step, _ = melt(plan, weight.flatten())
    assert step.targets.nonzero().flatten().tolist() == sorted(expected)
    rows = step.apply(features.flatten(0, 1))[step.targets]
    assert np.allclose(rows.numpy(), np.stack([expected[place] for place in sorted(expected)]), atol=1e-5)


def test_scores_rank_what_moves_where_there_is_no_attention() -> None:
    scores = torch.rand(2, 9)
    record = replace(video_tokens(2, 9, 4), scores=Scores(scores), token_budget=6)
    kept = HoliTomMerge().merge_tokens(record).target
    expected = (scores.topk(3, dim=1).indices + torch.tensor([[0], [9]])).flatten()
    assert sorted(kept.tolist()) == sorted(expected.tolist())


@pytest.mark.filterwarnings("ignore:.*removed none of")
@settings(max_examples=30, deadline=None)
@given(
    frames=st.integers(1, 9),
    tokens=st.integers(1, 20),
    ratio=st.floats(0.02, 1.0),
    attends=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_ratio_is_exact_unless_the_static_merge_leaves_fewer(
    frames: int, tokens: int, ratio: float, attends: bool, seed: int
) -> None:
    signals = {"vision_attention": torch.rand(frames, tokens)} if attends else {}
    policy = load_policy("holitom", retention_ratio=ratio)
    plan = policy.plan(video_features(frames, tokens, 6, seed=seed), signals=signals)
    wanted, kept = tokens_to_keep(frames * tokens, ratio), int(plan.keep.sum())
    assert kept == wanted or (kept < wanted and any("fewer than" in note for note in plan.report.notes))


def test_attention_to_dead_tokens_does_not_matter() -> None:
    record = video_tokens(3, 8, 6)
    keep = record.keep.clone()
    keep.view(-1)[::3] = False
    plans = []
    for poison in (0.0, torch.nan, torch.inf):
        signals = {"vision_attention": torch.linspace(0, 1, 24).view(3, 8).masked_fill(~keep, poison)}
        plans.append(HoliTomMerge(keep_ratio=0.5).merge_tokens(replace(record, keep=keep, signals=signals)))
    assert all(same(plans[0], plan) for plan in plans)
