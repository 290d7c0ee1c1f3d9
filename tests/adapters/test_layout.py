"""Layouts from shapes alone, and what does not fit is refused with the reason."""

from types import SimpleNamespace

import pytest
import torch

from vidsieve.adapters.layouts import VideoLayout, grid_layouts, square_layouts
from vidsieve.framework.errors import InputError

CONFIG = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2))


def test_a_grid_of_patches_becomes_merged_tokens() -> None:
    inputs = {"video_grid_thw": torch.tensor([[8, 14, 14], [4, 12, 20]]), "second_per_grid_ts": [1.0, 0.5]}
    first, second = grid_layouts(CONFIG, inputs)
    assert first == VideoLayout(8, 49, (8, 7, 7), seconds_per_frame=1.0)
    assert (second.grid, second.visual, second.rows) == ((4, 6, 10), 240, 240)


def test_a_video_without_its_grid_is_refused() -> None:
    with pytest.raises(InputError, match="video_grid_thw"):
        grid_layouts(CONFIG, {"pixel_values_videos": torch.zeros(4, 4)})


def test_frames_of_a_square_grid_end_with_their_structural_row() -> None:
    (layout,) = square_layouts({"pixel_values_videos": torch.zeros(1, 32, 3, 8, 8)}, side=14, structural=1)
    assert (layout.frames, layout.tokens, layout.visual, layout.rows) == (32, 196, 6272, 6273)


def test_videos_of_unequal_length_are_refused() -> None:
    with pytest.raises(InputError, match="same number of frames"):
        square_layouts({"pixel_values_videos": [torch.zeros(2, 3, 8, 8)]}, side=2, structural=0)


def test_features_that_are_no_whole_frames_are_refused() -> None:
    features = {"video": SimpleNamespace(pooler_output=[torch.zeros(10, 8)])}
    with pytest.raises(InputError, match="10 feature rows"):
        square_layouts({"mm_encoder_outputs": features}, side=2, structural=1)
