"""Which columns of a prompt a layer's cache holds, or a decode step reads: their masks, positions, keys and values."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from vidsieve.adapters.prompt.columns import kept_order


@dataclass(frozen=True, eq=False, kw_only=True)
class CachedColumns:
    """Columns in the order of a layer's cache.

    Columns are numbered as the first layer, which holds all, has them. Rows that hold fewer are filled up on the
    left, where `real` is False; `filled` says whether any is. `renumbered` layers count positions over what they
    hold (positions: compact). `places` are the columns that the tokens had before any merged one moved. `complete`
    says that these are all columns, each in its place.
    """

    columns: Int[Tensor, "rows held"]
    places: Int[Tensor, "rows held"]
    real: Bool[Tensor, "rows held"]
    filled: bool
    renumbered: bool = False
    complete: bool = False

    @classmethod
    def everything(cls, rows: int, width: int, device: torch.device) -> "CachedColumns":
        """All `width` columns, padding included."""
        columns = torch.arange(width, device=device).expand(rows, -1)
        real = torch.ones_like(columns, dtype=torch.bool)
        return cls(columns=columns, places=columns, real=real, filled=False, complete=True)

    @classmethod
    def read(cls, keep: Bool[Tensor, "rows held"], counts: list[int], later: int) -> "CachedColumns":
        """The entries `keep` that a layer holds of the prompt, `counts` of each row, and `later` ones behind it."""
        order, real = kept_order(keep, max(counts))
        chosen = cls(columns=order, places=order, real=real, filled=min(counts) < max(counts))
        return chosen.grown(keep.shape[1], later)

    @property
    def width(self) -> int:
        """Columns, filled-up ones included."""
        return self.columns.shape[1]

    # ---------------------------------------------------------------- further columns, other rows

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
        return replace(
            self,
            columns=torch.cat([self.columns, new], dim=1),
            places=torch.cat([self.places, new], dim=1),
            real=pad(self.real, (0, count), value=True),
        )

    def rows(self, index: Int[Tensor, " rows"]) -> "CachedColumns":
        """The prompts at `index`."""
        index = index.to(self.columns.device)
        columns, places, real = (one.index_select(0, index) for one in (self.columns, self.places, self.real))
        return replace(self, columns=columns, places=places, real=real)

    def on(self, device: torch.device) -> "CachedColumns":
        """The same on another device."""
        columns, places, real = (one.to(device) for one in (self.columns, self.places, self.real))
        return replace(self, columns=columns, places=places, real=real)

    def for_rows(self, rows: int) -> "CachedColumns":
        """The same, each row repeated for its beams."""
        times = rows // len(self.columns)
        return self if times == 1 else self.rows(torch.arange(len(self.columns)).repeat_interleave(times))

    # ---------------------------------------------------------------- between the prompt's numbering and the cache's

    def among(self, keep: Bool[Tensor, "rows prompt"]) -> Bool[Tensor, "rows held"]:
        """Which of these entries are among the prompt columns `keep`."""
        return keep if self.complete else keep.gather(1, self.places) & self.real

    def has(self, keep: Bool[Tensor, "rows prompt"]) -> Bool[Tensor, "rows prompt"]:
        """Which of the prompt columns `keep` are among these."""
        if self.complete:
            return keep
        found = torch.zeros_like(keep, dtype=torch.int8).scatter_add(1, self.places, self.real.to(torch.int8))
        return keep & (found > 0)

    def spread(self, attention: Float[Tensor, "rows heads keys"], prompt: int) -> Float[Tensor, "rows heads prompt"]:
        """Attention to these entries (and to later ones) as attention to prompt columns; 0 where there is no entry."""
        held = attention[:, :, : self.width]
        if self.complete:
            return held
        places = self.places.to(held.device)[:, None].expand(held.shape)
        # filling has weight 0, so adding it to the column it names changes nothing
        return held.new_zeros(*held.shape[:2], prompt).scatter_add(2, places, held)

    # ---------------------------------------------------------------- what a layer is given

    def positions(self, count: int) -> Int[Tensor, "rows count"]:
        """Positions of the last `count` columns, counted over what is held."""
        return (self.real.long().cumsum(dim=1) - 1).clamp(min=0)[:, -count:]

    def taken(self, states: Float[Tensor, "rows heads keys dim"]) -> Float[Tensor, "rows heads held dim"]:
        """Keys or values at these columns."""
        columns = self.columns.to(states.device)
        if states.shape[0] == 1:
            return states.index_select(2, columns[0])
        return states.gather(2, columns[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))

    def mask(self, given: Any, queries: int, implementation: str, dtype: torch.dtype) -> Any:
        """The attention mask of a pass whose last `queries` columns are new, from the one `given` for all columns.

        None stays None where nothing is filled up: the kernel's own causal order is right then.
        """
        if given is None:
            return self._made(queries, implementation, dtype) if self.filled else None
        columns, real = self.columns.to(given.device), self.real.to(given.device)
        picked = given.expand(len(columns), *given.shape[1:])
        if given.dim() == 2:
            return _hidden(picked.gather(1, columns), ~real)
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
