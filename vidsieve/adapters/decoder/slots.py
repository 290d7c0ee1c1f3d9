"""Which visual entries stand in the slots that decode attends from, and what a step must bring in.

The order of entries does not matter to the one query of a decode step, because their positions are in the keys: a new
choice swaps the entries that differ, and the others stay where they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vidsieve.adapters.prompt.columns import CachedColumns, kept_order


@dataclass(frozen=True, eq=False)
class Swap:
    """Visual entries, by number, and the slots they go to; filling repeats what stands in slot 0."""

    slots: Int[Tensor, "rows swapped"]
    tokens: Int[Tensor, "rows swapped"]

    @cached_property
    def tokens_on_host(self) -> Int[Tensor, "rows swapped"]:
        """`tokens` on the CPU: one read-back, when attention has moved."""
        return self.tokens.to("cpu")


@dataclass(frozen=True, eq=False)
class Filled:
    """The slots in one step: the `tokens` in them, how they came there, and the columns that the step reads."""

    tokens: Int[Tensor, "rows slots"]
    swap: Swap | None
    view: CachedColumns


@dataclass(eq=False)
class Slots:
    """The slots of the layers whose caches hold the same.

    `visual` are columns of the caches with visual entries, `valid` where a row has one there; `others` are all other
    columns, `real` where a row has one and its layers hold it. `table` says which entry is in a slot: −1 for none.
    """

    visual: Int[Tensor, "rows visual"]
    valid: Bool[Tensor, "rows visual"]
    others: Int[Tensor, "rows others"]
    real: Bool[Tensor, "rows others"]
    table: Int[Tensor, "rows slots"]
    prompt: int
    filled: bool

    @classmethod
    def of(cls, held: CachedColumns, visual: Bool[Tensor, "rows held"], counts: Sequence[int], slots: int) -> "Slots":
        """Empty slots for layers that hold `held`, `counts` visual entries of each row among it."""
        places, valid = kept_order(visual, max(counts), padded_right=True)
        most = held.width - min(counts)
        others, real = kept_order(~visual, most, padded_right=True)
        return cls(
            visual=places,
            valid=valid,
            others=others,
            real=real & held.real.gather(1, others),
            table=torch.full((len(places), min(slots, max(counts))), -1, device=places.device),
            prompt=held.width,
            filled=held.filled or min(counts) < max(counts),
        )

    @property
    def width(self) -> int:
        """Slots of a row."""
        return self.table.shape[1]

    def wanted(self, read: Bool[Tensor, "rows held"]) -> Bool[Tensor, "rows visual"]:
        """Which visual entries a step reads that reads these columns."""
        return read.gather(1, self.visual) & self.valid

    def missing(self, wanted: Bool[Tensor, "rows visual"]) -> Bool[Tensor, "rows visual"]:
        """Those of them that are in no slot."""
        there = torch.zeros_like(wanted, dtype=torch.int8)
        there.scatter_add_(1, self.table.clamp(min=0), (self.table >= 0).to(torch.int8))
        return wanted & (there == 0)

    def fill(self, wanted: Bool[Tensor, "rows visual"], most: int, counts: Sequence[int], later: int) -> Filled:
        """Swap in what is wanted: at most `most` entries are missing in a row, `counts` are wanted of each."""
        missing = self.missing(wanted)
        stays = (self.table >= 0) & wanted.gather(1, self.table.clamp(min=0))
        table, swap = torch.where(stays, self.table, -1), None
        if most:
            tokens, real = kept_order(missing, most, padded_right=True)
            slots, _ = kept_order(~stays, most, padded_right=True)
            # a row with fewer pairs writes into a column beside the table, which is then cut off
            wide = torch.nn.functional.pad(table, (0, 1)).scatter(1, torch.where(real, slots, self.width), tokens)
            table = wide[:, :-1]
            first = table[:, :1].clamp(min=0).expand_as(tokens)
            swap = Swap(torch.where(real, slots, 0), torch.where(real, tokens, first))
        self.table = table
        return Filled(table.clamp(min=0), swap, self._view(min(counts) < self.width, later))

    def _view(self, short: bool, later: int) -> CachedColumns:
        """The columns in the order of the buffers, with `later` ones behind the prompt."""
        columns = torch.cat([self.visual.gather(1, self.table.clamp(min=0)), self.others], dim=1)
        real = torch.cat([self.table >= 0, self.real], dim=1)
        held = CachedColumns(columns=columns, places=columns, real=real, filled=short or self.filled)
        return held.grown(self.prompt, later)

    def reorder(self, order: Tensor) -> None:
        """Permute the rows, as beam search does."""
        for name in ("visual", "valid", "others", "real", "table"):
            value = getattr(self, name)
            setattr(self, name, value.index_select(0, order.to(value.device)))
