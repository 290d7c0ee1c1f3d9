"""The M-RoPE positions of a short prompt, numbered as the whole one, before its videos are encoded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from vidsieve.integrations.vllm.places import place_media


@dataclass(frozen=True, eq=False)
class Medium:
    """A video or an image in the short prompt.

    offset, length  its tokens
    steps           positions that it takes from the text behind it, uncompressed
    places          relative to its start; of a video unknown yet, and anything
    """

    offset: int
    length: int
    steps: int
    places: Int[Tensor, "3 length"]


def number_prompt(tokens: int, media: Iterable[Medium]) -> Int[Tensor, "3 columns"]:
    """What vLLM keeps as the positions of a prompt: of its tokens, then where the medium of each token begins (-1 for
    text), then one column with the position of the first token of the answer.

    vLLM reads the first `tokens` columns alone, and hands the whole to `placed_prompt` before each step.
    """
    pieces, starts, at, following = [], [], 0, 0
    for medium in media:
        text = medium.offset - at
        pieces += [torch.arange(text).expand(3, -1) + following, medium.places + following + text]
        starts += [torch.full((text,), -1), torch.full((medium.length,), following + text)]
        at, following = medium.offset + medium.length, following + text + medium.steps
    text = tokens - at
    pieces.append(torch.arange(text).expand(3, -1) + following)
    starts += [torch.full((text,), -1), torch.tensor([following + text])]
    return torch.cat([*pieces, torch.cat(starts).expand(3, -1)], dim=1)


def answer_offset(numbered: Int[Tensor, "3 columns"], tokens: int) -> int:
    """How far the positions of an answer lie before or behind the count of tokens in the short prompt."""
    return int(numbered[0, -1]) - tokens


def placed_prompt(
    numbered: Int[Tensor, "3 columns"], tokens: int, computed: int, rows: Sequence[Any], width: int
) -> tuple[list[Tensor], Int[Tensor, "3 columns"]]:
    """Take the places off the rows of a chunk behind `computed` tokens, and put them into the prompt's positions."""
    starts = numbered[0, tokens:-1]
    stripped, placed = place_media(numbered[:, :tokens], starts, computed, rows, width)
    return stripped, torch.cat([placed, numbered[:, tokens:]], dim=1)
