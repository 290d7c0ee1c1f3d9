"""Videos whose frames stand between text: what is left of them, with that text, in one piece.

How many tokens stay in a frame is known only when the video is encoded, after vLLM has sized the prompt. The total is
known before. So the whole spelling of a video is one run of placeholders, and the encoder gives rows for its text too.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad


class Spelling:
    """An uncompressed video as its prompt spells it: the text of each frame and its placeholders, as ids."""

    def __init__(self, ids: Sequence[int], placeholder: int) -> None:
        self.ids = torch.tensor(ids)
        self.is_visual = self.ids == placeholder

    @cached_property
    def text(self) -> Int[Tensor, " words"]:
        """The ids of the text."""
        return self.ids[~self.is_visual]

    def places(self, grid: tuple[int, int, int]) -> Int[Tensor, "3 ids"]:
        """M-RoPE positions relative to the first id: a frame takes as many as its longer side."""
        _, height, width = grid
        visual = self.is_visual.long().cumsum(0) - self.is_visual.long()
        words = torch.arange(len(self.ids)) - visual
        start = words + visual // (height * width) * max(height, width)
        rows, columns = visual // width % height, visual % width
        return start + torch.stack([torch.zeros_like(rows), rows, columns]) * self.is_visual

    def woven(
        self, text: Float[Tensor, "words dim"], kept: Float[Tensor, "kept columns"], index: Int[Tensor, " kept"]
    ) -> tuple[Float[Tensor, "rows columns"], Int[Tensor, " rows"]]:
        """The rows of the text and of the kept tokens in the order of the prompt, and their places among all ids.

        `index` says which visual tokens are kept; columns that the text has not (rows of DeepStack) are 0 there.
        """
        words = (~self.is_visual).nonzero().squeeze(1).to(index.device)
        at = torch.cat([words, self.is_visual.nonzero().squeeze(1).to(index.device)[index]])
        rows = torch.cat([pad(text, (0, kept.shape[1] - text.shape[1])).to(kept), kept])
        at, order = at.sort()
        return rows[order], at
