"""The cached prompt as KV stages see it: where its visual tokens are, row by row."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from vidsieve.framework.plans import KeepKV
from vidsieve.framework.records import DecodeStep


@dataclass(frozen=True, eq=False, kw_only=True)
class KVPrompt:
    """Prompt columns of a batch: which are real, which are visual; `counts` are the visual tokens of each row."""

    real: Bool[Tensor, "rows prompt"]
    visual: Bool[Tensor, "rows prompt"]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, visual: Bool[Tensor, "rows prompt"], mask: Shaped[Tensor, "rows prompt"]) -> "KVPrompt":
        """From a prompt's columns; reads the counts back, once a request."""
        return cls(real=mask.bool(), visual=visual, counts=tuple(visual.sum(dim=1).tolist()))

    @classmethod
    def of_span(cls, span: tuple[int, int], rows: int, width: int, mask: Any, device: torch.device) -> "KVPrompt":
        """A span (start, length) that is visual in every row, cut off at the prompt's end."""
        place = torch.arange(width, device=device).expand(rows, -1)
        two_axes = isinstance(mask, Tensor) and mask.dim() == 2
        real = mask.bool() if two_axes else torch.ones_like(place, dtype=torch.bool)
        return cls.of((place >= span[0]) & (place < sum(span)), real)

    @property
    def width(self) -> int:
        """Columns, padding included."""
        return self.visual.shape[1]

    @property
    def most(self) -> int:
        """Visual tokens of the row that has most."""
        return max(self.counts)

    @cached_property
    def numbers(self) -> Int[Tensor, "rows one"]:
        """`counts` on the device."""
        return torch.tensor(self.counts, device=self.visual.device)[:, None]

    @cached_property
    def places(self) -> Int[Tensor, "rows visual"]:
        """Column of each visual token; rows with fewer repeat columns that are not visual."""
        return torch.argsort((~self.visual).to(torch.int8), dim=1, stable=True)[:, : self.most]

    def for_rows(self, rows: int) -> "KVPrompt":
        """The same prompts, each repeated for its beams."""
        times = rows // len(self.counts)
        if times == 1:
            return self
        return KVPrompt(
            real=self.real.repeat_interleave(times, dim=0),
            visual=self.visual.repeat_interleave(times, dim=0),
            counts=tuple(count for count in self.counts for _ in range(times)),
        )

    def step(
        self,
        attention: Float[Tensor, "rows heads keys"],
        keep: Bool[Tensor, "rows prompt"],
        counts: list[int],
        layer: int,
        state: dict[str, Any] | None,
    ) -> DecodeStep:
        """What a stage is shown. Visual tokens that are not among `keep` are not valid; `counts` says how many are."""
        places = self.places
        valid = (torch.arange(self.most, device=places.device) < self.numbers) & keep.gather(1, places)
        index = places.to(attention.device)[:, None, :].expand(-1, attention.shape[1], -1)
        return DecodeStep(
            attention=attention.gather(2, index) * valid.to(attention.device)[:, None],
            valid=valid.to(attention.device),
            counts=tuple(counts),
            layer=layer,
            state=state,
        )

    def chosen(self, plan: KeepKV, step: DecodeStep) -> tuple[Bool[Tensor, "rows prompt"], Bool[Tensor, ""]]:
        """The columns a plan reads (all of an inactive row), and whether its indices are numbers of visual tokens."""
        device, most = self.visual.device, self.most
        index = plan.index.long().to(device)
        fits = ((index >= -1) & (index < self.numbers)).all()
        slot = torch.where((index < 0) | (index >= most), most, index)
        picked = torch.zeros(len(index), most + 1, dtype=torch.bool, device=device).scatter(1, slot, True)[:, :most]
        picked &= step.valid.to(device)
        columns = torch.zeros_like(self.visual).scatter(1, self.places, picked)
        return ~self.visual | columns | ~plan.active.to(device)[:, None], fits
