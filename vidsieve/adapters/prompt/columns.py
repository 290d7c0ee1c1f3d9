"""`Columns`: everything a prompt holds per token, so that one index shortens all of it together.

`CachedColumns` says which of them a layer's cache holds, or a decode step reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad

PER_TOKEN = ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids", "labels")
"""Model inputs, beside ids and mask, that have one entry a token."""
_FILL = {"labels": -100}


@dataclass(frozen=True, eq=False, kw_only=True)
class Columns:
    """The token columns of a batch of prompts.

    `mask` is 1 on real tokens. `positions` are the rotary positions that the tokens have in the uncompressed prompt:
    one axis, or three (time, height, width) in front. `visual` marks the tokens that a KV stage chooses among.
    `others` holds further inputs with one entry a token.
    """

    ids: Int[Tensor, "rows columns"]
    mask: Shaped[Tensor, "rows columns"]
    positions: Int[Tensor, "*axes rows columns"]
    visual: Bool[Tensor, "rows columns"]
    others: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def with_span(cls, span: tuple[int, int], rows: int, width: int, mask: Any, device: torch.device) -> "Columns":
        """Prompts of `width` columns in which a span (start, length) is visual; a `mask` of other than two axes is
        not read."""
        place = torch.arange(width, device=device).expand(rows, -1)
        two_axes = isinstance(mask, Tensor) and mask.dim() == 2
        return cls(
            ids=place,
            mask=mask.bool() if two_axes else torch.ones_like(place, dtype=torch.bool),
            positions=place,
            visual=(place >= span[0]) & (place < sum(span)),
        )

    @cached_property
    def width(self) -> int:
        """Columns, padding included."""
        return self.ids.shape[1]

    @cached_property
    def visual_counts(self) -> tuple[int, ...]:
        """Visual tokens of each row; read back from the device, once."""
        return tuple(self.visual.sum(dim=1).tolist())

    @cached_property
    def visual_places(self) -> Int[Tensor, "rows visual"]:
        """Column of each visual token; rows with fewer repeat columns that are not visual."""
        most = max(self.visual_counts)
        return torch.argsort((~self.visual).to(torch.int8), dim=1, stable=True)[:, :most]

    @cached_property
    def visual_slots(self) -> Bool[Tensor, "rows visual"]:
        """Which of `visual_places` are visual tokens."""
        return self.visual.gather(1, self.visual_places)

    def take(self, order: Int[Tensor, "rows kept"], real: Bool[Tensor, "rows kept"], pad_id: int) -> "Columns":
        """The columns in `order`; where `real` is False the column becomes padding."""

        def pick(values: Tensor, fill: int) -> Tensor:
            index = order.to(values.device).expand(*values.shape[:-1], order.shape[1])
            return values.gather(-1, index).masked_fill(~real.to(values.device), fill)

        return Columns(
            ids=pick(self.ids, pad_id),
            mask=pick(self.mask, 0),
            positions=pick(self.positions, 0),
            visual=pick(self.visual, 0),
            others={name: pick(values, _FILL.get(name, 0)) for name, values in self.others.items()},
        )

    def join(self, later: "Columns") -> "Columns":
        """These columns followed by `later`; an input that only one side has is filled up."""

        def both(first: Tensor | None, second: Tensor | None, fill: int) -> Tensor:
            if first is None:
                assert second is not None
                first = torch.full_like(self.ids, fill).to(second.dtype)
            if second is None:
                second = torch.full_like(later.ids, fill).to(first.dtype)
            return torch.cat([first, second.to(first)], dim=-1)

        names = [name for name in PER_TOKEN if name in self.others or name in later.others]
        return Columns(
            ids=both(self.ids, later.ids, 0),
            mask=both(self.mask, later.mask, 0),
            positions=both(self.positions, later.positions, 0),
            visual=both(self.visual, later.visual, 0),
            others={n: both(self.others.get(n), later.others.get(n), _FILL.get(n, 0)) for n in names},
        )

    def rows(self, index: Int[Tensor, " rows"]) -> "Columns":
        """The prompts at `index`."""

        def of(values: Tensor) -> Tensor:
            return values.index_select(-2, index.to(values.device))

        others = {name: of(values) for name, values in self.others.items()}
        return Columns(
            ids=of(self.ids),
            mask=of(self.mask),
            positions=of(self.positions),
            visual=of(self.visual),
            others=others,
        )

    def for_rows(self, rows: int) -> "Columns":
        """The same, each prompt repeated for its beams."""
        times = rows // len(self.ids)
        return self if times == 1 else self.rows(torch.arange(len(self.ids)).repeat_interleave(times))

    def placed(self, positions: Int[Tensor, "*axes rows columns"]) -> "Columns":
        """The same tokens at other positions."""
        return replace(self, positions=positions)


def kept_order(
    keep: Bool[Tensor, "rows columns"], width: int, *, padded_right: bool = False
) -> tuple[Int[Tensor, "rows kept"], Bool[Tensor, "rows kept"]]:
    """Column numbers of the kept tokens, in order, and which of them are real.

    Rows that keep fewer than `width` are filled up on the left, or on the right with `padded_right`.
    """
    if padded_right:
        order = torch.argsort((~keep).to(torch.int8), dim=1, stable=True)[:, :width]
    else:
        order = torch.argsort(keep.to(torch.int8), dim=1, stable=True)[:, -width:]
    return order, keep.gather(1, order)


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

    def part(
        self, keep: Bool[Tensor, "rows held"], width: int, *, filled: bool
    ) -> tuple["CachedColumns", Int[Tensor, "rows kept"]]:
        """The entries `keep`, at most `width` of each row, and where they were; `filled` if any row has fewer."""
        order, real = kept_order(keep, width)
        columns, places = self.columns.gather(1, order), self.places.gather(1, order)
        kept = replace(self, columns=columns, places=places, real=real, filled=filled, complete=False)
        return kept, order

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
    if len(index) == 1:  # many times as fast as gather
        return values.index_select(-2, index[0])
    values = values.expand(*values.shape[:-3], len(index), *values.shape[-2:])
    return values.gather(-2, index[..., None].expand(*values.shape[:-2], index.shape[1], values.shape[-1]))
