"""Which visual KV entries each decoder layer holds, where layer stages have shortened the prompt on its way."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidsieve.adapters.decoder.cached_columns import CachedColumns
from vidsieve.adapters.decoder.kv_prompt import KVPrompt


@dataclass(frozen=True, eq=False, kw_only=True)
class KVGroup:
    """Decoder layers whose caches hold the same of the prompt.

    `places` are the prompt columns of the tokens held, in the order of the cache (None: all of them); `real` marks
    those that are no filling. `lengths` counts what a row holds, `visual` the visual tokens among it.
    """

    layers: tuple[int, ...]
    lengths: list[int]
    visual: list[int]
    places: Int[Tensor, "rows held"] | None = None
    real: Bool[Tensor, "rows held"] | None = None

    def behind(self, layer: int) -> int:
        """How many of its layers come after `layer`."""
        return sum(one > layer for one in self.layers)

    def reads(self, keep: Bool[Tensor, "rows prompt"]) -> Bool[Tensor, "rows held"]:
        """Which of its entries are among the prompt columns `keep`."""
        if self.places is None or self.real is None:
            return keep
        return keep.gather(1, self.places) & self.real

    def has(self, keep: Bool[Tensor, "rows prompt"]) -> Bool[Tensor, "rows prompt"]:
        """Which of the prompt columns `keep` it holds."""
        if self.places is None or self.real is None:
            return keep
        return keep & (
            torch.zeros_like(keep, dtype=torch.int8).scatter_add(1, self.places, self.real.to(torch.int8)) > 0
        )

    @cached_property
    def width(self) -> int:
        """Entries of a row, filling included."""
        return max(self.lengths) if self.places is None else self.places.shape[1]

    def spread(self, attention: Float[Tensor, "rows heads keys"], prompt: int) -> Float[Tensor, "rows heads prompt"]:
        """Attention to its entries as attention to prompt columns; 0 where it holds none."""
        held = attention[:, :, : self.width]
        if self.places is None:
            return held
        places = self.places.to(held.device)[:, None].expand(held.shape)
        # filling has weight 0, so adding it to the column it names changes nothing
        return held.new_zeros(*held.shape[:2], prompt).scatter_add(2, places, held)


def groups_of(prompt: KVPrompt, held: Sequence[CachedColumns | None] | None, layers: int) -> list[KVGroup]:
    """The layers of a decoder by what they hold. Reads counts back, once a request, if any holds less than all."""
    held = [None] * layers if held is None else held
    kinds = {id(one): one for one in held}
    groups, rows = [], len(prompt.counts)
    for kind, one in kinds.items():
        own = tuple(layer for layer in range(layers) if id(held[layer]) == kind)
        if one is None:
            groups.append(KVGroup(layers=own, lengths=[prompt.width] * rows, visual=list(prompt.counts)))
            continue
        wide = one.for_rows(rows)
        places, real = wide.places.to(prompt.visual.device), wide.real.to(prompt.visual.device)
        visual = prompt.visual.gather(1, places) & real
        lengths, counts = torch.stack([real.sum(dim=1), visual.sum(dim=1)]).tolist()
        groups.append(KVGroup(layers=own, lengths=lengths, visual=counts, places=places, real=real))
    return groups
