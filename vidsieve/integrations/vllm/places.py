"""Where kept tokens stood in their video, carried to the language model inside their own rows.

vLLM numbers a prompt before its videos are encoded. A kept row therefore brings its three positions along, relative to
the start of its video, as digits in base 128 appended to its features: whole numbers below 129 are exact in bfloat16
and float16. The model takes them off again just before the language model reads the rows.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

BASE = 128
DIGITS = 3
CHANNELS = 3 * DIGITS


def with_places(rows: Float[Tensor, "kept dim"], places: Int[Tensor, "3 kept"]) -> Float[Tensor, "kept dim_and_digits"]:
    """The rows with `CHANNELS` more columns, which hold `places`."""
    digits = [(places // BASE**power) % BASE for power in range(DIGITS)]
    return torch.cat([rows, torch.cat(digits).T.to(rows)], dim=1)


def without_places(
    rows: Float[Tensor, "kept dim_and_digits"],
) -> tuple[Float[Tensor, "kept dim"], Int[Tensor, "3 kept"]]:
    """Take the places off again."""
    digits = rows[:, -CHANNELS:].long().T.unflatten(0, (DIGITS, 3))
    power = BASE ** torch.arange(DIGITS, device=rows.device).view(-1, 1, 1)
    return rows[:, :-CHANNELS], (digits * power).sum(dim=0)


def grid_places(index: Int[Tensor, " kept"], grid: tuple[int, int, int], time_factor: float) -> Int[Tensor, "3 kept"]:
    """Time, height and width of tokens of a grid; a step in time counts for `time_factor`, rounded down in all.

    The product is taken in float32, as transformers does: 5 steps of 2.8 are 14 there, and 13 in float64.
    """
    _, height, width = grid
    time = index // (height * width)
    time = (time.float() * time_factor).long() if time_factor != 1.0 else time
    return torch.stack([time, index // width % height, index % width])


def place_media(
    positions: Int[Tensor, "3 tokens"],
    starts: Int[Tensor, " tokens"],
    computed: int,
    rows: Sequence[Tensor],
    width: int,
) -> tuple[list[Tensor], Int[Tensor, "3 tokens"]]:
    """Rows of a chunk of the prompt without their places, and the positions of the prompt with these put in.

    Args:
        positions: of the whole prompt; those of its text are right already.
        starts: for each token that a row fills, where its video or image begins; -1 for text.
        computed: how many tokens lie before the chunk.
        rows: of the videos and images that the chunk holds a part of, in order; those wider than `width` bring places.
    """
    at = (starts[computed:] >= 0).nonzero().squeeze(1) + computed
    placed, stripped, start = positions.clone(), [], 0
    for part in rows:
        columns = at[start : start + len(part)]
        start += len(part)
        if part.shape[-1] == width:
            stripped.append(part)
            continue
        part, places = without_places(part)
        stripped.append(part)
        placed[:, columns] = places.to(placed) + starts[columns]
    return stripped, placed
