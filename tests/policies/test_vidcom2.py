"""VidCom²: its measure against an independent float64 one, its budget, and what must not change a plan."""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsieve import load_policy
from vidsieve.framework import records
from vidsieve.framework.errors import PolicyError
from vidsieve.framework.policy.file import read_policy
from vidsieve.framework.records import VideoTokens
from vidsieve.policies import vidcom2
from vidsieve.policies.vidcom2 import FrameBudget, TokenScore
from vidsieve.testing import video_tokens
from vidsieve.testing.samples import video_features


def plain_likeness(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The formulas written out in float64 numpy, one frame after the other."""
    x = x.astype(np.float64)
    dim = x.shape[-1]
    steady = np.sort(np.argsort(x.reshape(-1, dim).var(axis=0), kind="stable")[: int(0.5 * dim)])
    y = x[..., steady]
    y = y / np.maximum(np.linalg.norm(y, axis=-1, keepdims=True), 1e-12)
    centre = y.reshape(-1, len(steady)).mean(axis=0)

    def kernel(distance: np.ndarray) -> np.ndarray:
        return sum(np.exp(-distance / (2 * a)) for a in (1 / 8, 1 / 4, 1 / 2, 1, 2))

    video = kernel(((y - centre) ** 2).sum(-1))
    frame = np.stack([kernel(((one - one.mean(axis=0)) ** 2).sum(-1)) for one in y])
    return video, frame


@pytest.mark.parametrize("shape", [(1, 9, 8), (4, 49, 64), (3, 48, 65), (2, 16, 1024), (7, 5, 2)])
def test_likeness_equals_the_formulas_in_float64(shape: tuple[int, int, int]) -> None:
    features = video_features(*shape, seed=3)
    record = video_tokens(*shape)
    found = vidcom2.measure(features, record.keep, record.weight, 0.5)
    video, frame = plain_likeness(features.numpy())
    np.testing.assert_allclose(found.video.numpy(), video, atol=5e-6)
    np.testing.assert_allclose(found.frame.numpy(), frame, atol=5e-6)


def test_zero_tokens_are_scored_like_any_other() -> None:
    features = video_features(4, 9, 16)
    features[1, :5] = 0
    record = video_tokens(4, 9, 16, features=features)
    video, frame = plain_likeness(features.numpy())
    scores = TokenScore().score_tokens(record).values
    np.testing.assert_allclose(scores.numpy(), -(video + frame), atol=1e-5)


def test_budget_shares_lie_in_the_range_the_paper_gives_and_sum_to_one() -> None:
    for frames in (2, 5, 16):
        share = FrameBudget().budget_frames(video_tokens(frames, 9, 16)).share
        assert share.sum().item() == pytest.approx(1.0, abs=1e-6)
        assert ((share * frames >= 1 - 1 / frames - 1e-6) & (share * frames <= 2 - 1 / frames + 1e-6)).all()
        assert share.argmax().item() == frames // 2  # the sample's unusual frame


def test_a_high_temperature_shares_evenly() -> None:
    record = video_tokens(8, 9, 16)
    spread = [FrameBudget(temperature=t).budget_frames(record).share.std().item() for t in (0.01, 0.1, 1.0)]
    assert spread[0] > spread[1] > spread[2]


def test_identical_frames_share_evenly_and_round_half_to_even_when_released() -> None:
    still = video_features(1, 49, 64).expand(4, 49, 64).contiguous()
    assert load_policy("vidcom2", retention_ratio=0.5).plan(still).report.per_frame == ((25, 25, 24, 24),)
    # 0.5 * 49 = 24.5 goes to 24, in each frame
    assert load_policy("vidcom2-released", retention_ratio=0.5).plan(still).report.per_frame == ((24,) * 4,)


def test_released_counts_drift_where_exact_ones_do_not() -> None:
    features = video_features(4, 49, 64)
    one_hot = {"vidcom2.frame-budget.temperature": 0.003}
    released = load_policy("vidcom2-released", retention_ratio=1.0, settings=one_hot).plan(features)
    # the usual frames get (1 - 1/4) * 49 = 36.75, the unusual one would get 1.75 * 49 and is cut at its 49 tokens
    assert released.report.per_frame == ((37, 37, 49, 37),)
    assert load_policy("vidcom2", retention_ratio=1.0).plan(features).keep.all()


def test_released_counts_keep_one_token_of_every_frame() -> None:
    plan = load_policy("vidcom2-released", retention_ratio=0.005).plan(video_features(4, 49, 64))
    assert plan.report.per_frame == ((1, 1, 1, 1),)


def test_released_counting_asks_for_a_retention_ratio() -> None:
    with pytest.raises(PolicyError, match="retention_ratio, none came"):
        FrameBudget(counting="released").budget_frames(video_tokens(4, 9, 16, retention_ratio=None))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), power=st.integers(-6, 6))
def test_scaling_all_features_changes_nothing(seed: int, power: int) -> None:
    features = video_features(5, 16, 24, seed=seed)
    policy = load_policy("vidcom2")
    assert torch.equal(policy.plan(features).keep, policy.plan(features * 2.0**power).keep)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_shuffled_tokens_of_a_frame_are_scored_the_same(seed: int) -> None:
    features = video_features(5, 16, 24, seed=seed)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    record = video_tokens(5, 16, 24, features=features)
    shuffled = replace(record, features=features[:, order])
    plain, moved = (TokenScore().score_tokens(one).values for one in (record, shuffled))
    assert torch.allclose(plain[:, order], moved, atol=5e-6)


def test_a_token_standing_for_three_counts_as_three() -> None:
    base = video_features(2, 4, 8)
    tripled = torch.cat([base, base[:, :1], base[:, :1]], dim=1)
    weight = torch.ones(2, 4)
    weight[:, 0] = 3
    light = vidcom2.measure(base, torch.ones(2, 4, dtype=torch.bool), weight, 0.5)
    heavy = vidcom2.measure(tripled, torch.ones(2, 6, dtype=torch.bool), torch.ones(2, 6), 0.5)
    for one, other in zip(light, heavy, strict=True):
        assert torch.allclose(one, other[:, :4], atol=1e-5)


def test_dropped_tokens_count_as_if_they_had_never_been() -> None:
    record = video_tokens(4, 9, 16)
    keep = record.keep.clone()
    keep[:, 6:] = False
    keep[3] = False
    poisoned = replace(record, keep=keep, features=record.features.masked_fill(~keep[..., None], float("nan")))
    alone = video_tokens(3, 6, 16, features=record.features[:3, :6])
    scores = TokenScore().score_tokens(poisoned).values[:3, :6]
    assert torch.allclose(scores, TokenScore().score_tokens(alone).values, atol=1e-5)
    share = FrameBudget().budget_frames(poisoned).share
    assert share[3] == 0
    assert torch.allclose(share[:3], FrameBudget().budget_frames(alone).share, atol=1e-4)


def test_frame_weight_zero_leaves_likeness_to_the_video_alone() -> None:
    record = video_tokens(4, 9, 16)
    video, _ = vidcom2.likeness(record, 0.5)
    assert torch.equal(TokenScore(frame_weight=0.0).score_tokens(record).values, -video)


def test_both_stages_measure_a_video_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = vidcom2.measure
    monkeypatch.setattr(vidcom2, "measure", lambda *args: calls.append(1) or real(*args))
    policy, features = load_policy("vidcom2"), video_features(6, 9, 16)
    first = policy.plan(features)
    assert len(calls) == 1
    features.neg_().add_(torch.randn(features.shape))
    second = policy.plan(features)
    assert len(calls) == 2
    assert not torch.equal(first.keep, second.keep)


def test_features_written_in_place_are_measured_anew() -> None:
    record = video_tokens(4, 9, 16)
    before = TokenScore().score_tokens(record).values.clone()
    record.features[0].normal_()
    after = TokenScore().score_tokens(record).values
    fresh = TokenScore().score_tokens(replace(record, features=record.features.clone())).values
    assert not torch.equal(before, after)
    assert torch.equal(after, fresh)


def test_nothing_keeps_the_features_of_a_video_in_memory() -> None:
    import gc
    import weakref

    features = video_features(4, 9, 16)
    alive = weakref.ref(features)
    load_policy("vidcom2").plan(features)
    del features
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(("ratio", "kept"), [(0.25, 12), (0.5, 24), (1.0, 49), (0.001, 1)])
def test_one_frame_gets_the_whole_budget(ratio: float, kept: int) -> None:
    features = video_features(1, 49, 16)
    # 12.25, 24.5 (half to even) and 49 of 49; never none
    assert int(load_policy("vidcom2-released", retention_ratio=ratio).plan(features).keep.sum()) == kept
    assert int(load_policy("vidcom2", retention_ratio=ratio).plan(features).keep.sum()) == kept


@pytest.mark.parametrize(("name", "made"), [("fastvid", 1), ("holitom", 2), ("prunevid", 2)])
def test_every_pair_of_stages_shares_work_until_a_reduction(
    name: str, made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [], records._living
    monkeypatch.setattr(records, "_living", lambda *read: calls.append(1) or real(*read))
    load_policy(name).plan(video_features(8, 16, 16))
    assert len(calls) == made


def test_what_a_reduction_leaves_is_measured_anew() -> None:
    text = """{format: 1, name: twice, retention_ratio: 0.25, stages: [
        {use: vidcom2.token-score}, {use: top-k, keep_ratio: 0.5}, {use: vidcom2.token-score, as: again},
        {use: top-k, as: last}]}"""
    features = video_features(5, 16, 16)
    first = read_policy(text.replace("0.25", "0.5").split(", {use: vidcom2.token-score, as")[0] + "]}", "one.yaml")
    half = first.plan(features).keep
    second = TokenScore().score_tokens(video_tokens(5, 16, 16, features=features, keep=half)).values
    wanted = second.masked_fill(~half, -torch.inf).flatten().argsort(descending=True, stable=True)[:20].sort().values
    assert torch.equal(read_policy(text, "two.yaml").plan(features).index, wanted)


def test_one_policy_plans_in_many_threads_as_alone() -> None:
    policy, videos = load_policy("vidcom2"), [video_features(6, 16, 16, seed=seed) for seed in range(24)]
    alone = [policy.plan(video).keep for video in videos]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda video: policy.plan(video).keep, videos))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_a_copied_record_is_measured_for_itself() -> None:
    record = video_tokens(4, 9, 16, memo={})
    before = vidcom2.likeness(record, 0.5)
    assert vidcom2.likeness(record, 0.5) is before
    assert vidcom2.likeness(record, 0.25) is not before
    other = replace(record, features=-record.features.flip(0))
    assert torch.equal(vidcom2.likeness(other, 0.5).video, vidcom2.measure(other.features, *_rest(other)).video)
    assert torch.equal(vidcom2.likeness(copy.deepcopy(record), 0.5).video, before.video)


def _rest(record: VideoTokens) -> tuple[torch.Tensor, torch.Tensor, float]:
    return record.keep, record.weight, 0.5
