"""DyCoke's token stage: who is compared with whom, what is kept, and the ends of a video."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsieve import load_policy
from vidsieve.framework.errors import PolicyError
from vidsieve.framework.records import VideoShape
from vidsieve.policies.dycoke import TemporalMerge
from vidsieve.testing import video_tokens
from vidsieve.testing.samples import video_features


def plain_merge(x: np.ndarray, drop_ratio: float) -> np.ndarray:
    """Window after window, frame after frame, in float64."""
    frames, tokens, _ = x.shape
    x = x.astype(np.float64)
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    keep = np.ones((frames, tokens), dtype=bool)
    for start in range(0, frames, 4):
        for frame, reference in ((start + 1, start), (start + 2, start), (start + 3, start + 2)):
            if frame < frames:
                similarity = (unit[frame] * unit[reference]).sum(-1)
                keep[frame] = False
                keep[frame, np.argsort(similarity, kind="stable")[: int((1 - drop_ratio) * tokens)]] = True
    return keep


@settings(max_examples=40, deadline=None)
@given(
    frames=st.integers(1, 11),
    tokens=st.integers(1, 30),
    drop=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
    seed=st.integers(0, 99),
)
def test_choices_equal_the_method_written_out(frames: int, tokens: int, drop: float, seed: int) -> None:
    features = video_features(frames, tokens, 16, seed=seed)
    keep = TemporalMerge(drop_ratio=drop).select_tokens(video_tokens(frames, tokens, 16, features=features)).mask
    assert np.array_equal(keep.numpy(), plain_merge(features.numpy(), drop))


def test_only_what_changed_is_kept() -> None:
    features = torch.ones(4, 6, 3)
    for frame, token in ((1, 2), (2, 4), (3, 4), (3, 5)):
        features[frame, token] = torch.tensor([1.0, -1.0, 0.0])
    keep = TemporalMerge(drop_ratio=0.8).select_tokens(video_tokens(4, 6, 3, features=features)).mask
    # 0.2 * 6 = 1.2 keeps one of each compared frame; at 4, frame 3 only repeats what frame 2 showed
    assert keep[0].all()
    assert keep[1].nonzero().flatten().tolist() == [2]
    assert keep[2].nonzero().flatten().tolist() == [4]
    assert keep[3].nonzero().flatten().tolist() == [5]


def test_identical_frames_tie_to_the_lower_index() -> None:
    features = video_features(1, 10, 8).expand(8, 10, 8).contiguous()
    keep = TemporalMerge(drop_ratio=0.5).select_tokens(video_tokens(8, 10, 8, features=torch.ones_like(features))).mask
    assert torch.equal(keep[[1, 2, 3, 5, 6, 7]], (torch.arange(10) < 5).expand(6, 10))


def test_the_third_frame_is_compared_whole_even_though_it_is_pruned() -> None:
    features = video_features(4, 12, 8)
    other = features.clone()
    other[1] = torch.randn(12, 8)
    first, second = (
        TemporalMerge(drop_ratio=0.5).select_tokens(video_tokens(4, 12, 8, features=x)).mask for x in (features, other)
    )
    assert torch.equal(first[[0, 2, 3]], second[[0, 2, 3]])


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_short_videos_are_handled_and_one_frame_is_left_alone(frames: int) -> None:
    policy = load_policy("dycoke", settings={"dycoke.temporal-merge.drop_ratio": 0.5})
    assert policy.plan(video_features(frames, 10, 8)).report.per_frame == ((10, 5, 5, 5)[:frames],)


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_the_released_form_refuses_short_videos_and_names_the_official_failure(frames: int) -> None:
    with pytest.raises(PolicyError, match="RuntimeError: stack expects a non-empty TensorList"):
        load_policy("dycoke-released").plan(video_features(frames, 10, 8))


def test_an_odd_last_frame_is_lost_only_in_the_released_form() -> None:
    features = video_features(7, 10, 8)
    released = load_policy("dycoke-released").plan(features).report.per_frame[0]
    fixed = load_policy("dycoke", settings={"dycoke.temporal-merge.drop_ratio": 0.7}).plan(features).report.per_frame[0]
    assert released == (10, 3, 3, 3, 10, 3, 0)
    assert fixed == (10, 3, 3, 3, 10, 3, 3)


def test_the_last_windows_third_frame_stays_whole_only_in_the_released_form() -> None:
    features = video_features(8, 10, 8)
    released = load_policy("dycoke-released").plan(features).report.per_frame[0]
    fixed = load_policy("dycoke", settings={"dycoke.temporal-merge.drop_ratio": 0.7}).plan(features).report.per_frame[0]
    assert released == (10, 3, 3, 3, 10, 3, 10, 3)
    assert fixed == (10, 3, 3, 3, 10, 3, 3, 3)


@settings(max_examples=60, deadline=None)
@given(
    alive=st.lists(st.integers(0, 20), min_size=1, max_size=12),
    drop=st.floats(0, 1),
    windows=st.sampled_from(["complete", "released"]),
)
def test_attainable_foretells_the_count_exactly(alive: list[int], drop: float, windows: str) -> None:
    frames = len(alive)
    if sum(alive) == 0 or (windows == "released" and frames <= 4):
        return
    stage = TemporalMerge(drop_ratio=drop, windows=windows)
    keep = torch.arange(20) < torch.tensor(alive)[:, None]
    mask = stage.select_tokens(video_tokens(frames, 20, 4, keep=keep)).mask
    low, high = stage.attainable(VideoShape(frames, 20, 1, tuple(alive)))
    assert low == high
    assert low * sum(alive) == pytest.approx(int(mask.sum()))


def test_tokens_whose_counterpart_was_dropped_are_kept_first() -> None:
    record = video_tokens(2, 8, 8, features=torch.ones(2, 8, 8))
    keep = record.keep.clone()
    keep[0, [5, 6]] = False
    plan = TemporalMerge(drop_ratio=0.7).select_tokens(replace(record, keep=keep))
    # int(0.3 * 8) = 2 stay: those with nothing to compare with
    assert plan.mask[1].nonzero().flatten().tolist() == [5, 6]
    assert plan.protected is not None
    assert torch.equal(plan.protected[0], keep[0])
    assert not plan.protected[1].any()


def test_counts_are_of_the_living_tokens() -> None:
    record = video_tokens(2, 10, 8)
    keep = record.keep.clone()
    keep[1, 4:] = False
    assert int(TemporalMerge(drop_ratio=0.5).select_tokens(replace(record, keep=keep)).mask[1].sum()) == 2


def test_a_drop_ratio_that_nobody_decides_is_an_error() -> None:
    with pytest.raises(PolicyError, match="set drop_ratio"):
        TemporalMerge().select_tokens(video_tokens(4, 4, 4))
