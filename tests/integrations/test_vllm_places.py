"""Kept rows carry their places to the language model, through the dtypes that a server uses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vidsieve.integrations.vllm.numbering import Medium, answer_offset, number_prompt, placed_prompt
from vidsieve.integrations.vllm.places import CHANNELS, grid_places, with_places, without_places
from vidsieve.integrations.vllm.spelling import Spelling


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


def test_a_step_in_time_is_a_product_in_float32_as_in_transformers() -> None:
    seconds = torch.tensor(0.7)
    expected = (torch.arange(8) * (4 * seconds)).long()
    assert expected[5] == 14 and int(5 * 4 * float(seconds)) == 13
    assert torch.equal(grid_places(torch.arange(8), (8, 1, 1), 4 * float(seconds))[0], expected)


def _prompt() -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Text, a video of which 3 tokens are kept, text, an image of 4, right behind it a video of which 2 are kept."""
    image = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]])
    unknown = torch.zeros(3, 3, dtype=torch.long)
    media = [Medium(2, 3, 8, unknown), Medium(7, 4, 2, image), Medium(11, 2, 15, unknown[:, :2])]
    first = grid_places(torch.tensor([1, 6, 47]), (8, 2, 3), 1.0)
    second = grid_places(torch.tensor([0, 59]), (15, 2, 2), 1.0)
    rows = [with_places(torch.zeros(3, 4), first), torch.ones(4, 4), with_places(torch.zeros(2, 4), second)]
    expected = torch.cat(
        [torch.tensor([[0, 1]] * 3), first + 2, torch.tensor([[10, 11]] * 3), image + 12, second + 14], dim=1
    )
    return number_prompt(13, media), torch.tensor([2, 2, 2, 12, 12, 12, 12, 14, 14]), rows, expected


def test_a_prompt_is_numbered_before_its_videos_are_encoded() -> None:
    numbered, starts, _, expected = _prompt()
    known = [0, 1, 5, 6, 7, 8, 9, 10]
    assert torch.equal(numbered[:, known], expected[:, known])
    told = numbered[0, 13:-1]
    assert told[told >= 0].tolist() == starts.tolist() and told[known[:4]].tolist() == [-1] * 4
    assert answer_offset(numbered, 13) == 14 + 15 - 13


def test_media_of_a_whole_prompt_is_placed_where_it_begins() -> None:
    numbered, _, rows, expected = _prompt()
    stripped, found = placed_prompt(numbered, 13, 0, rows, width=4)
    assert torch.equal(found[:, :13], expected)
    assert [part.shape for part in stripped] == [(3, 4), (4, 4), (2, 4)]


def test_an_answer_goes_on_behind_a_video_that_ends_the_prompt() -> None:
    numbered, _, rows, _ = _prompt()
    _, found = placed_prompt(numbered, 13, 0, rows, width=4)
    # the last kept token may stand anywhere; the whole video ends at 14 + 15
    assert answer_offset(found, 13) == 16


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_a_prompt_in_chunks_of_any_size_is_placed_alike_also_once_more(size: int) -> None:
    numbered, _, rows, expected = _prompt()
    owner = torch.tensor([-1, -1, 0, 0, 0, -1, -1, 1, 1, 1, 1, 2, 2])
    for _ in range(2):  # a request that gave way to others is computed again
        done = [0, 0, 0]
        for start in range(0, 13, size):
            parts = []
            for number in range(3):
                here = int((owner[start : start + size] == number).sum())
                if here:
                    parts.append(rows[number][done[number] : done[number] + here])
                    done[number] += here
            _, numbered = placed_prompt(numbered, 13, start, parts, width=4)
        assert torch.equal(numbered[:, :13], expected)
    assert rows[0].shape[1] == 4 + CHANNELS


def _spelled() -> Spelling:
    """Three frames of 2 x 3 tokens (9): two words before each, one behind, and a word between frames."""
    ids = []
    for frame in range(3):
        ids += [*([4] if frame else []), 1, 2 + frame, *[9] * 6, 5]
    return Spelling(ids, 9)


def test_kept_tokens_stand_among_the_text_of_their_frames() -> None:
    whole = _spelled()
    text = torch.arange(len(whole.text), dtype=torch.float32)[:, None].expand(-1, 2)
    index = torch.tensor([1, 5, 13])  # two of the first frame, none of the second, one of the third
    kept = torch.tensor([[101.0], [105.0], [113.0]]).expand(-1, 5)
    rows, at = whole.woven(text, kept, index)
    assert rows[:, 0].tolist() == [0, 1, 101, 105, 2, 3, 4, 5, 6, 7, 8, 9, 113, 10]
    assert rows[[0, 4], 2:].eq(0).all()
    assert whole.ids[at].tolist() == [1, 2, 9, 9, 5, 4, 1, 3, 5, 4, 1, 4, 9, 5]


def test_a_spelled_video_has_the_positions_of_its_whole_prompt() -> None:
    places = _spelled().places((3, 2, 3))
    frame = torch.tensor([[0] * 6, [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]])
    expected, at = [], 0
    for number in range(3):
        before = 2 + (number > 0)
        expected += [torch.arange(at, at + before).expand(3, -1), frame + at + before]
        at += before + 3
        expected.append(torch.full((3, 1), at))
        at += 1
    assert torch.equal(places, torch.cat(expected, dim=1))
