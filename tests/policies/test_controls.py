"""The controls: chance, and whole frames."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsieve import load_policy
from vidsieve.policies.random_scores import RandomScores
from vidsieve.policies.uniform_frames import UniformFrames, evenly_spaced_counts
from vidsieve.testing import video_tokens
from vidsieve.testing.samples import video_features


def test_chance_is_fair_to_every_token() -> None:
    policy, features = load_policy("random", retention_ratio=0.25), video_features(4, 8, 4)
    hits = sum(policy.plan(features, seed=seed).keep.float() for seed in range(400))
    # 100 expected of 400, standard deviation 8.7; five of them
    assert (hits - 100).abs().max() < 44


def test_chance_depends_on_seed_and_video_only() -> None:
    policy, features = load_policy("random"), video_features(4, 9, 4)
    keep = policy.plan(features, seed=1).keep
    assert torch.equal(keep, policy.plan(torch.zeros_like(features), seed=1).keep)
    assert not torch.equal(keep, policy.plan(features, seed=2).keep)
    assert not torch.equal(keep, policy.plan(features, seed=1, video_index=1).keep)


def test_chance_never_ties() -> None:
    values = RandomScores().score_tokens(video_tokens(32, 196, 2)).values
    assert values.unique().numel() == 32 * 196


@pytest.mark.parametrize(
    ("frames", "ratio", "counts"),
    [
        (8, 0.25, [0, 0, 4, 0, 0, 0, 4, 0]),
        (8, 1.0, [4] * 8),
        (4, 0.125, [0, 0, 2, 0]),
        (1, 0.5, [2]),
        (5, 0.5, [4, 0, 4, 0, 2]),
    ],
)
def test_whole_frames_stand_evenly_and_the_last_takes_the_rest(frames: int, ratio: float, counts: list[int]) -> None:
    plan = load_policy("uniform-frames", retention_ratio=ratio).plan(video_features(frames, 4, 4))
    assert plan.keep.sum(dim=1).tolist() == counts


def test_the_cut_frame_is_thinned_evenly() -> None:
    plan = load_policy("uniform-frames", retention_ratio=0.25).plan(video_features(1, 16, 4))
    assert plan.keep[0].nonzero().flatten().tolist() == [3, 7, 11, 15]


@settings(max_examples=100, deadline=None)
@given(alive=st.lists(st.integers(0, 9), min_size=1, max_size=20), data=st.data())
def test_counts_are_exact_and_at_most_one_frame_is_cut(alive: list[int], data) -> None:
    if sum(alive) == 0:
        return
    total = data.draw(st.integers(1, sum(alive)))
    counts = evenly_spaced_counts(alive, total)
    assert sum(counts) == total
    assert all(count <= there for count, there in zip(counts, alive, strict=True))
    assert sum(0 < count < there for count, there in zip(counts, alive, strict=True)) <= 1
    keep = torch.arange(9) >= 9 - torch.tensor(alive)[:, None]
    mask = UniformFrames().select_tokens(video_tokens(len(alive), 9, 2, keep=keep, token_budget=total)).mask
    assert mask.sum(dim=1).tolist() == counts
    assert not (mask & ~keep).any()
