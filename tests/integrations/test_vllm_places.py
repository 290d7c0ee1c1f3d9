"""Kept rows carry their places to the language model, through the dtypes that a server uses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vidsieve.integrations.vllm.places import CHANNELS, grid_places, place_media, with_places, without_places


@given(st.lists(st.tuples(*[st.integers(0, 128**3 - 1)] * 3), min_size=1, max_size=20))
def test_places_survive_half_precision(cells: list[tuple[int, int, int]]) -> None:
    places = torch.tensor(cells).T
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        rows = torch.randn(len(cells), 5).to(dtype)
        back, found = without_places(with_places(rows, places))
        assert torch.equal(back, rows)
        assert torch.equal(found, places)


def test_a_step_in_time_is_rounded_down_in_all_and_not_step_by_step() -> None:
    index = torch.tensor([0, 5, 6 * 3 + 4])
    assert grid_places(index, (4, 2, 3), 1.0).tolist() == [[0, 0, 3], [0, 1, 1], [0, 2, 1]]
    assert grid_places(index, (4, 2, 3), 0.5)[0].tolist() == [0, 0, 1]


def _prompt() -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Text, a video of which 3 tokens are kept, text, an image of 4, text, a video of which 2 are kept, text."""
    media = torch.tensor([0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 1, 1, 0]).bool()
    positions = torch.full((3, 15), -1)
    positions[:, [0, 1, 5, 6, 11, 14]] = torch.tensor([0, 1, 10, 11, 14, 30])
    image = torch.tensor([[12, 12, 12, 12], [12, 12, 13, 13], [12, 13, 12, 13]])
    positions[:, 7:11] = image
    first = grid_places(torch.tensor([1, 6, 47]), (8, 2, 3), 1.0)
    second = grid_places(torch.tensor([0, 59]), (15, 2, 2), 1.0)
    rows = [with_places(torch.zeros(3, 4), first), torch.ones(4, 4), with_places(torch.zeros(2, 4), second)]
    expected = positions.clone()
    expected[:, 2:5] = first + 2
    expected[:, 12:14] = second + 15
    return media, positions, rows, expected


def test_media_of_a_whole_prompt_is_placed_behind_its_text() -> None:
    media, positions, rows, expected = _prompt()
    stripped, found = place_media(positions, media, 0, rows, hidden=4)
    assert torch.equal(found, expected)
    assert [part.shape for part in stripped] == [(3, 4), (4, 4), (2, 4)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_a_prompt_in_chunks_of_any_size_is_placed_alike(size: int) -> None:
    media, positions, rows, expected = _prompt()
    owner = torch.full((15,), -1)
    owner[media] = torch.tensor([0] * 3 + [1] * 4 + [2] * 2)
    done = [0, 0, 0]
    for start in range(0, 15, size):
        parts = []
        for number in range(3):
            here = int((owner[start : start + size] == number).sum())
            if here:
                parts.append(rows[number][done[number] : done[number] + here])
                done[number] += here
        _, positions = place_media(positions, media, start, parts, hidden=4)
    assert torch.equal(positions, expected)
    assert rows[0].shape[1] == 4 + CHANNELS
