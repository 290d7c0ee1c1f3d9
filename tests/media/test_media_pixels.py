"""The low-level functions by hand and by law, apart from any processor."""

import pytest
import torch

from vidsieve.framework.errors import MediaError
from vidsieve.media import Clip
from vidsieve.media.pixels import (
    centre_crop,
    covered,
    grid_patches,
    normalise,
    patchify,
    resize_frames,
    short_edge_size,
    smart_resize,
)


def test_a_frame_thinner_than_one_to_two_hundred_is_refused() -> None:
    with pytest.raises(MediaError, match="200:1"):
        smart_resize(2, 402, factor=8, min_pixels=64, max_pixels=6400)


def test_a_visual_token_is_successive_rows_in_reading_order() -> None:
    frames = torch.zeros(2, 3, 4, 8)
    frames[..., :] = torch.arange(8.0)  # each pixel tells its column
    frames += 10 * torch.arange(4.0)[:, None]  # and its row
    rows = patchify(frames, patch_size=1, temporal_patch_size=2, merge_size=2)
    first_token = [0, 1, 10, 11]
    second_token = [2, 3, 12, 13]
    assert rows.shape == (32, 6)
    assert rows[:8, 0].tolist() == first_token + second_token
    assert rows[16:20, 0].tolist() == [20, 21, 30, 31]


def test_a_row_holds_channel_then_time_then_space() -> None:
    channel = 100 * torch.arange(3.0)[None, :, None, None]
    time = 10 * torch.arange(2.0)[:, None, None, None]
    space = torch.arange(4.0).reshape(2, 2)
    row = patchify(channel + time + space, patch_size=2, temporal_patch_size=2, merge_size=1)
    assert row.flatten()[:8].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]
    assert row.flatten()[8:12].tolist() == [100, 101, 102, 103]


def test_an_odd_tail_repeats_the_last_frame() -> None:
    frames = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    sizes = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    odd, odd_grid = grid_patches(frames, **sizes)
    even, even_grid = grid_patches(torch.cat([frames, frames[-1:]]), **sizes)
    assert torch.equal(odd, even)
    assert odd_grid.tolist() == even_grid.tolist() == [2, 2, 2]


def test_a_batch_of_videos_is_patched_as_each_alone() -> None:
    videos = torch.randn(3, 5, 3, 8, 16)
    sizes = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    together = patchify(videos, **sizes)
    assert torch.equal(together, torch.stack([patchify(video, **sizes) for video in videos]))


def test_float_and_uint8_frames_give_the_same_pixels() -> None:
    frames = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(normalise(frames), normalise(frames.float()))


def test_normalising_leaves_the_callers_frames_alone() -> None:
    frames = torch.full((1, 3, 8, 8), 7.0)
    normalise(frames)
    assert torch.equal(frames, torch.full((1, 3, 8, 8), 7.0))


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 3, 8, 12), (2, 3, 0, 8)])
def test_frames_that_cannot_be_cut_into_patches_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MediaError, match="multiples of 8"):
        grid_patches(torch.zeros(shape, dtype=torch.uint8), patch_size=4, merge_size=2)


def test_short_edges_and_crops_by_hand() -> None:
    assert short_edge_size(360, 640, 336) == (336, 597)
    assert short_edge_size(640, 360, 336) == (597, 336)
    frames = torch.arange(5 * 6, dtype=torch.uint8).reshape(1, 1, 5, 6).expand(1, 3, 5, 6)
    assert centre_crop(frames, 3, 2)[0, 0].tolist() == [[8, 9], [14, 15], [20, 21]]
    wide = centre_crop(frames, 3, 9)[0, 0]
    assert wide[0].tolist() == [0, 6, 7, 8, 9, 10, 11, 0, 0]


def test_resizing_to_the_same_size_is_the_same_frames() -> None:
    frames = torch.randint(0, 256, (2, 3, 9, 7), dtype=torch.uint8)
    assert resize_frames(frames, 9, 7) is frames


@pytest.mark.gpu
def test_resizing_on_the_gpu_is_at_most_a_step_off() -> None:
    frames = torch.randint(0, 256, (2, 3, 60, 90), dtype=torch.uint8)
    here, there = resize_frames(frames, 28, 56), resize_frames(frames.cuda(), 28, 56).cpu()
    assert (here.int() - there.int()).abs().max() <= 1


def test_a_clip_from_memory_counts_all_its_frames() -> None:
    clip = Clip.from_frames(torch.zeros(5, 3, 4, 4, dtype=torch.uint8), fps=10)
    assert clip.timestamps_s.tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert (clip.duration_s, clip.sampled_fps, clip.source_frames) == (0.5, 10, 5)
    with pytest.raises(MediaError, match="needs a frame"):
        Clip.from_frames(torch.zeros(0, 3, 4, 4, dtype=torch.uint8), fps=10)


@pytest.mark.parametrize(("height", "width"), [(40, 80), (80, 40), (40, 40)])
def test_what_is_covered_is_what_resizing_and_cropping_leave(height: int, width: int) -> None:
    """At the frames' own size: resized afterwards, it is the crop of the resized frames."""
    ramp = torch.arange(height)[:, None] * 2 + torch.arange(width)
    frames = ramp.to(torch.uint8).expand(1, 3, -1, -1).contiguous()
    seen = covered(frames, 20, 20, 20)
    assert seen.shape[-2:] == (40, 40)
    edges = short_edge_size(height, width, 20)
    theirs = centre_crop(resize_frames(frames, *edges, mode="bilinear"), 20, 20)
    ours = resize_frames(seen, 20, 20, mode="bilinear")
    assert (ours.int() - theirs.int())[..., 1:-1, 1:-1].abs().max() <= 1


def test_a_crop_larger_than_the_frame_is_shown_with_its_border() -> None:
    assert covered(torch.full((1, 3, 20, 20), 9, dtype=torch.uint8), 10, 20, 20).shape[-2:] == (40, 40)
