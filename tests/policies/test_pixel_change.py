"""Frames that differ most from the one before are encoded, as many as asked for, the first one always."""

import pytest
import torch

from vidsieve import FrameBatch, VideoShape, load_policy
from vidsieve.framework.errors import PolicyError
from vidsieve.framework.planning.frames import plan_frames
from vidsieve.policies.pixel_change import PixelChange, pixel_change

# every pixel of a frame has one value, so the change is the difference of the values: inf, 3, 0, 1, 4
FILM = torch.tensor([0.0, 3.0, 3.0, 4.0, 0.0]).view(5, 1, 1, 1, 1).expand(5, 1, 3, 2, 2)


def kept(stage: PixelChange, budget: int | None = None, film: torch.Tensor = FILM) -> list[int]:
    plan = stage.reduce_frames(FrameBatch(pixels=film, keep_budget=budget))
    return plan.mask.nonzero().squeeze(1).tolist()


def test_the_change_is_the_mean_difference_to_the_frame_before() -> None:
    assert pixel_change(FILM).tolist() == [torch.inf, 3.0, 0.0, 1.0, 4.0]


@pytest.mark.parametrize(("budget", "expected"), [(1, [0]), (2, [0, 4]), (3, [0, 1, 4]), (5, [0, 1, 2, 3, 4])])
def test_the_frames_that_change_most_are_kept(budget: int, expected: list[int]) -> None:
    assert kept(PixelChange(), budget) == expected


def test_a_ratio_of_its_own_counts_frames() -> None:
    assert kept(PixelChange(keep_ratio=0.6)) == [0, 1, 4]
    assert PixelChange(keep_ratio=0.6).attainable(VideoShape(5, 4)) == (0.6, 0.6)


def test_of_a_still_video_the_earlier_frames_are_kept() -> None:
    assert kept(PixelChange(), 2, torch.ones(4, 2, 3, 2, 2)) == [0, 1]


def test_bytes_and_half_floats_are_compared_in_float32() -> None:
    assert pixel_change(FILM.to(torch.bfloat16)).tolist() == pixel_change(FILM).tolist()


@pytest.mark.parametrize(("ratio", "count"), [(0.5, 2), (0.01, 1), (1.0, 5)])
def test_the_published_policy_meets_its_ratio_in_frames(ratio: float, count: int) -> None:
    mask = plan_frames(load_policy("pixel-change", retention_ratio=ratio), FILM)
    assert int(mask.sum()) == count


def test_without_anything_that_decides_the_count_it_is_refused() -> None:
    document = load_policy("pixel-change").to_dict()
    del document["retention_ratio"]
    from vidsieve.framework.policy.file import read_policy

    text = "\n".join(f"{key}: {value!r}" for key, value in document.items())
    with pytest.raises(PolicyError, match="how many"):
        read_policy(text, "edited.yaml")
