"""Which pictures of a prompt are the frames of a video, read from the prompt alone or told by the caller."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vidsieve.adapters.layouts import VideoLayout, picture_layouts
from vidsieve.framework.errors import InputError

CONFIG = SimpleNamespace(image_token_id=9)
FRAME = [9, 9, 9, 9]


def layouts(*rows: list[int], kinds: list[list[int]] | None = None, **asked: Any) -> list[VideoLayout]:
    """Layouts of rows of ids; frames are 2 x 2."""
    ids = torch.tensor(rows)
    inputs: dict[str, Any] = {"input_ids": ids, "pixel_values": torch.zeros(int((ids == 9).sum()) // 4, 1)}
    if kinds is not None:
        inputs["mm_token_type_ids"] = torch.tensor(kinds)
    return picture_layouts(CONFIG, inputs, side=2, **{"gap": 4, "tiles": len} | asked)


def image(rows: int) -> VideoLayout:
    return VideoLayout(0, 0, (0, 0, 0), structural=rows)


def video(frames: int) -> VideoLayout:
    return VideoLayout(frames, 4, (frames, 2, 2))


def test_pictures_close_behind_each_other_are_a_video() -> None:
    assert layouts([1, 2, *FRAME, 3, 1, 2, *FRAME, 3, 1, 2, *FRAME, 3, 5]) == [video(3)]


def test_an_image_of_several_tiles_is_none() -> None:
    assert layouts([2, *FRAME, *FRAME, 3, 2, *FRAME, 3, 2, *FRAME]) == [image(8), video(2)]


def test_a_lone_picture_is_an_image_unless_the_caller_says_video() -> None:
    row = [1, 2, *FRAME, 3, 5]
    assert layouts(row) == [image(4)]
    assert layouts(row, kinds=[[2 * (one == 9) for one in row]]) == [video(1)]


def test_what_the_caller_calls_images_is_never_a_video() -> None:
    row = [2, *FRAME, 3, 2, *FRAME, 3]
    assert layouts(row, kinds=[[int(one == 9) for one in row]]) == [image(4), image(4)]


def test_far_apart_or_introduced_by_other_tokens_pictures_are_images() -> None:
    assert layouts([2, *FRAME, 3, 1, 1, 1, 1, 2, *FRAME]) == [image(4), image(4)]
    assert layouts([2, *FRAME, 3, 4, *FRAME, 3, 5, *FRAME]) == [image(4), image(4), image(4)]


def test_a_frame_that_is_numbered_as_the_first_begins_another_video() -> None:
    first, second, third = ([7, number, 2, *FRAME, 3] for number in (11, 12, 13))
    row = [*first, *second, *third, *first, *second]
    assert layouts(row, numbered=3) == [video(3), video(2)]
    assert layouts(row) == [video(5)]


def test_rows_are_read_one_after_the_other() -> None:
    assert layouts([2, *FRAME, 2, *FRAME], [5, 5, 5, 5, 5, 2, *FRAME]) == [video(2), image(4)]


def test_placeholders_without_their_pictures_are_refused() -> None:
    inputs = {"input_ids": torch.tensor([[2, *FRAME]]), "pixel_values": torch.zeros(2, 1)}
    with pytest.raises(InputError, match=r"4 placeholders.*8 feature rows"):
        picture_layouts(CONFIG, inputs, side=2, gap=4, tiles=len)
