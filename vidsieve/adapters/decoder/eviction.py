"""Step 10 in prefill: once a layer has read the prompt, visual entries of its KV cache leave it for good.

The cache's own layer keeps what is left, in new tensors; the old ones are let go. So no layer but the one at work ever
holds the whole prompt beside those that keep everything: the first, from which transformers reads a cache's length,
those that no stage names, and those without full attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidsieve.adapters.attention_taps import AttentionCall
from vidsieve.adapters.decoder.layer_prefill import Prefill
from vidsieve.adapters.decoder.layer_rows import PrefillRow
from vidsieve.adapters.prompt.columns import CachedColumns, kept_order
from vidsieve.adapters.transformers_internals import cached_layer, grows_plainly
from vidsieve.framework.errors import PlanError, PolicyError
from vidsieve.framework.planning.checks import call as call_stage
from vidsieve.framework.plans import highest
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import PromptKV
from vidsieve.framework.stage import Stage


@dataclass(frozen=True, eq=False)
class _Cut:
    """A stage that cuts the cache of a layer, the `turn`-th of those it names."""

    where: str
    stage: Stage
    turn: int


@dataclass(eq=False)
class Eviction:
    """The cuts of a policy in each layer of a decoder; `offered` and `kept` count visual entries by layer, all rows."""

    layers: int
    cuts: dict[int, _Cut] = field(default_factory=dict)
    offered: dict[int, int] = field(default_factory=dict)
    kept: dict[int, int] = field(default_factory=dict)
    _faults: list[tuple[str, Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, policy: Policy, config: Any, layers: int) -> "Eviction":
        """The cuts of `policy`, in layers whose caches may be shorter than the others.

        Raises:
            PolicyError: a stage names layers that are not there, or none that can be cut.
        """
        types = getattr(config, "layer_types", None) or ["full_attention"] * layers
        full = [layer for layer, kind in enumerate(types[:layers]) if kind == "full_attention"]
        # transformers reads the length of a cache from its first layer, that of masks from the first full one
        free = [layer for layer in full[1:] if layer > 0]
        made = cls(layers)
        for bound in policy.evict_stages:
            where = f"policy {policy.name!r}, stage {bound.label!r}, evict_kv"
            named = bound.stage.layers(layers)
            beyond = [layer for layer in named if not 0 <= layer < layers]
            if beyond or not set(named) & set(free):
                raise PolicyError(
                    f"{where}: names the decoder layers {', '.join(map(str, named)) or 'none'}, but this model has "
                    f"{layers}, of which {', '.join(map(str, free)) or 'none'} can let go of entries (those with full "
                    "attention behind the first of them). Name some of these."
                )
            twice = sorted(set(named) & set(made.cuts))
            if twice:
                raise PolicyError(f"{where}: cuts layer {twice[0]}, as another stage does; give them different layers.")
            made.cuts |= {layer: _Cut(where, bound.stage, turn) for turn, layer in enumerate(named) if layer in free}
        if made.cuts and policy.layer_stages and policy.positions == "compact":
            raise PolicyError(
                f"policy {policy.name!r}: positions: compact numbers anew what prune_layer leaves, by how many entries "
                "a layer holds, which evict_kv changes; use positions: original, or one of the two."
            )
        return made

    @property
    def evicted(self) -> dict[int, int]:
        """Entries that left, by layer; empty where no layer was cut."""
        return {layer: count - self.kept[layer] for layer, count in self.offered.items()}

    def attended(
        self, call: AttentionCall, prefill: Prefill, visual: Bool[Tensor, "prompts width"], cache: Any
    ) -> None:
        """Cut the cache of a layer that has just read the prompt; a stage chooses among the `visual` columns."""
        cut = self.cuts.get(call.layer)
        if cut is None or cache is None:
            return
        layer = cached_layer(cache, call.layer)
        if not grows_plainly(layer):
            raise PolicyError(
                f"{cut.where}: takes entries out of the KV cache, which a layer of type {type(layer).__name__} "
                "cannot let go of; leave cache_implementation and past_key_values out, or pass a DynamicCache."
            )
        self._carry_out(cut, call, prefill, visual, layer)

    def check(self) -> None:
        """Refuse what stages answered that was no number. One read-back a prompt.

        Raises:
            PlanError: a score was NaN or -inf.
        """
        found, self._faults = self._faults, []
        if not found:
            return
        flags = torch.stack([flag.to(found[0][1].device) for _, flag in found]).tolist()
        for (where, _), flag in zip(found, flags, strict=True):
            if flag:
                raise PlanError(f"{where}: Scores.values must be finite or +inf, got NaN or -inf.")

    def _carry_out(
        self, cut: _Cut, call: AttentionCall, prefill: Prefill, visual: Bool[Tensor, "prompts width"], layer: Any
    ) -> None:
        counts = [sum(video.slots.numel() for video in row.videos) for row in prefill.rows]
        number = call.layer
        if not any(counts):
            return
        device = layer.keys.device
        held = (prefill.held[number] or _whole(prefill)).on(device)
        places, valid = kept_order(held.among(visual.to(device)), max(counts), padded_right=True)
        asked = _Asked(call, prefill, places, valid)
        record = PromptKV(
            entries=asked.entries,
            attention=asked.attention,
            valid=valid,
            counts=tuple(counts),
            layer=number,
            layers=self.layers,
        )
        values = call_stage(cut.where, cut.stage, "evict_kv", record).values
        self._faults.append((cut.where, ((values.isnan() | values.isneginf()) & valid).any()))
        kept = [self._count(cut, count) for count in counts]
        self.offered[number], self.kept[number] = sum(counts) * prefill.times, sum(kept) * prefill.times
        chosen = highest(values, valid, kept)
        keep = held.real & ~torch.zeros_like(held.real).scatter(1, places, valid & ~chosen)
        width, filled = _width(prefill, number, counts, kept)
        left, order = held.part(keep, width, filled=filled)
        prefill.held[number] = left
        wide = order.repeat_interleave(prefill.times, dim=0)[:, None, :, None]
        for name in ("keys", "values"):
            states = getattr(layer, name)
            setattr(layer, name, states.gather(2, wide.expand(-1, states.shape[1], -1, states.shape[3])))

    def _count(self, cut: _Cut, offered: int) -> int:
        if offered == 0:
            return 0
        return max(0, min(offered, cut.stage.leaves(offered, self.layers)[cut.turn]))


@dataclass(frozen=True, eq=False)
class _Asked:
    """What a stage may look at in a layer that has read the prompt; of the beams of a prompt, the first."""

    call: AttentionCall
    prefill: Prefill
    places: Int[Tensor, "prompts visual"]
    valid: Bool[Tensor, "prompts visual"]

    def entries(self, of: str) -> Float[Tensor, "prompts kv_heads visual dim"]:
        """`PromptKV.entries`."""
        states = {"keys": self.call.key, "values": self.call.value}[of][:: self.prefill.times]
        places = self.places.to(states.device)[:, None, :, None]
        found = states.gather(2, places.expand(-1, states.shape[1], -1, states.shape[3])).float()
        return found.masked_fill(~self.valid.to(found.device)[:, None, :, None], 0.0).to(self.valid.device)

    def attention(self, rows: int) -> Float[Tensor, "prompts heads asked visual"]:
        """`PromptKV.attention`."""
        tap = self.prefill.tapped(self.call, self.call.layer, self.call.key)
        found = [self._of(number, row, tap, rows) for number, row in enumerate(self.prefill.rows)]
        most = max(one.shape[1] for one in found)
        filled = [torch.nn.functional.pad(one, (0, 0, most - one.shape[1], 0)) for one in found]
        attention = torch.stack(filled).to(self.valid.device)
        return attention.masked_fill(~self.valid[:, None, None], 0.0)

    def _of(self, number: int, row: PrefillRow, tap: Any, rows: int) -> Float[Tensor, "heads asked visual"]:
        columns = self.prefill.columns_of(row)
        text = columns[row.others[row.text]][-rows:]
        asked = text if text.numel() else columns[-1:]
        # the tap counts from the first column of the pass
        visual = self.places[number].to(columns.device) - tap.past.shape[1]
        return tap.rows(number * self.prefill.times, number, asked, visual)


def _whole(prefill: Prefill) -> CachedColumns:
    """What a layer holds that holds everything."""
    rows, width = prefill.mask.shape
    columns = CachedColumns.everything(rows, width, prefill.mask.device)
    return replace(columns, real=prefill.mask, complete=False)


def _width(prefill: Prefill, layer: int, counts: Sequence[int], kept: Sequence[int]) -> tuple[int, bool]:
    """The widest row of a layer after a cut, and whether any row may be shorter; nothing is read back."""
    lengths = [row.width - all_ + left for row, all_, left in zip(prefill.rows, counts, kept, strict=True)]
    uneven = len(set(lengths)) > 1
    if not prefill.start:
        return max(lengths), uneven
    past = prefill.past[layer]
    width = prefill.start if past is None else past.width
    return width + max(lengths), uneven or (not prefill.whole if past is None else past.filled)
