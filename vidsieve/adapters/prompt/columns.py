"""`Columns`: everything a prompt holds per token, so that one index shortens all of it together."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

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

    @property
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
