"""What a decoder layer holds of the prompt when earlier layers passed on less of it: columns, masks, positions."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, eq=False, kw_only=True)
class CachedColumns:
    """The prompt columns in one layer's cache, in their order there.

    Columns are numbered as the first layer, which holds all, has them. Rows that hold fewer are filled up on the
    left, where `real` is False; `filled` says whether any is. `renumbered` layers count positions over what they
    hold (positions: compact). `places` are the columns that the tokens had before any merged one moved.
    """

    columns: Int[Tensor, "rows held"]
    places: Int[Tensor, "rows held"]
    real: Bool[Tensor, "rows held"]
    filled: bool
    renumbered: bool

    @property
    def width(self) -> int:
        """Columns, filled-up ones included."""
        return self.columns.shape[1]

    @cached_property
    def lengths(self) -> Int[Tensor, "rows one"]:
        """Real columns of each row."""
        return self.real.sum(dim=1, keepdim=True)

    def behind(self, past: "CachedColumns") -> "CachedColumns":
        """These columns after those a layer holds from earlier turns."""
        return CachedColumns(
            columns=torch.cat([past.columns, self.columns], dim=1),
            places=torch.cat([past.places, self.places], dim=1),
            real=torch.cat([past.real, self.real], dim=1),
            filled=past.filled or self.filled,
            renumbered=past.renumbered,
        )

    def grown(self, start: int, count: int) -> "CachedColumns":
        """With `count` further columns from `start` on, which every layer holds."""
        new = torch.arange(start, start + count, device=self.columns.device).expand(len(self.columns), -1)
        return CachedColumns(
            columns=torch.cat([self.columns, new], dim=1),
            places=torch.cat([self.places, new], dim=1),
            real=pad(self.real, (0, count), value=True),
            filled=self.filled,
            renumbered=self.renumbered,
        )

    def rows(self, index: Int[Tensor, " rows"]) -> "CachedColumns":
        """The prompts at `index`."""
        index = index.to(self.columns.device)
        return replace(
            self,
            columns=self.columns.index_select(0, index),
            places=self.places.index_select(0, index),
            real=self.real.index_select(0, index),
        )

    def for_rows(self, rows: int) -> "CachedColumns":
        """The same, each row repeated for its beams."""
        times = rows // len(self.columns)
        return self if times == 1 else self.rows(torch.arange(len(self.columns)).repeat_interleave(times))

    def positions(self, count: int) -> Int[Tensor, "rows count"]:
        """Positions of the last `count` columns, counted over what is held."""
        return (self.real.long().cumsum(dim=1) - 1).clamp(min=0)[:, -count:]

    def mask(self, given: Any, queries: int, implementation: str, dtype: torch.dtype) -> Any:
        """The attention mask of a pass whose last `queries` columns are new, from the one `given` to the first layer.

        None stays None where nothing is filled up: the kernel's own causal order is right then.
        """
        if given is None:
            return self._made(queries, implementation, dtype) if self.filled else None
        if given.dim() == 2:
            picked = given.expand(len(self.columns), -1).gather(1, self.columns.to(given.device))
            return _hidden(picked, ~self.real.to(given.device))
        columns, real = self.columns.to(given.device), self.real.to(given.device)
        picked = given.expand(len(columns), *given.shape[1:])
        if queries > 1:
            first = given.shape[-1] - given.shape[-2]
            rows = (columns[:, -queries:] - first)[:, None, :, None]
            picked = picked.gather(2, rows.expand(-1, picked.shape[1], -1, picked.shape[3]))
        picked = picked.gather(3, columns[:, None, None].expand(-1, *picked.shape[1:3], -1))
        return _hidden(picked, ~real[:, None, None])

    def _made(self, queries: int, implementation: str, dtype: torch.dtype) -> Tensor:
        """A causal mask that hides filled-up columns, in the form the kernel reads."""
        if "flash" in implementation:
            return self.real
        place = torch.arange(self.width, device=self.real.device)
        seen = self.real[:, None, None] & (place <= place[-queries:, None])
        if implementation != "eager":
            return seen
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def _hidden(mask: Tensor, off: Bool[Tensor, "..."]) -> Tensor:
    """`mask` with further entries masked out: False, 0, or the lowest float of an additive mask."""
    if mask.dtype == torch.bool:
        return mask & ~off
    return mask.masked_fill(off, torch.finfo(mask.dtype).min if mask.dtype.is_floating_point else 0)


def gathered(values: Tensor, index: Int[Tensor, "rows picked"]) -> Tensor:
    """Rows of `values` [... rows columns dim] at `index`; one row of values serves every row of the index."""
    index = index.to(values.device)
    values = values.expand(*values.shape[:-3], len(index), *values.shape[-2:])
    return values.gather(-2, index[..., None].expand(*values.shape[:-2], index.shape[1], values.shape[-1]))
