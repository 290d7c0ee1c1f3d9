"""Test stages for decode-time KV pruning, and the same decoding done with masks in the unpatched model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import KeepKV
from vidsieve.framework.records import DecodeStep
from vidsieve.framework.stage import Stage
from vidsieve.testing.adapter_kit import full_positions, visual_places
from vidsieve.testing.adapter_runs import (
    STEPS,
    unpatched,
)

AFTER = 1


class TopKV(Stage):
    """Read the visual entries with the highest attention, summed over all steps so far."""

    ratio: float = 0.4
    after: int = AFTER

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """One prune point."""
        return (self.after,)

    @hookimpl
    def prune_kv(self, step: DecodeStep) -> KeepKV:
        """A fixed width for every row; −1 where a row has fewer."""
        rank = step.attention.mean(dim=1) + (step.state["sum"] if step.state else 0)
        counts = [int(count * self.ratio) for count in step.counts]
        order = rank.masked_fill(~step.valid, -1).argsort(dim=1, descending=True)[:, : max(counts)]
        rows = torch.arange(order.shape[1]) < torch.tensor(counts)[:, None]
        active = torch.ones(len(counts), dtype=torch.bool)
        return KeepKV(torch.where(rows, order, -1), active, state={"sum": rank})


class Misbehaves(TopKV):
    """Do one thing wrong, or nothing at all, in a decode step."""

    how: str = "idle"

    @hookimpl
    def prune_kv(self, step: DecodeStep) -> KeepKV:
        """As `how` says."""
        if self.how == "raise":
            raise ZeroDivisionError("on purpose")
        number = step.attention.shape[2] if self.how == "too high" else 0
        index = torch.full((len(step.counts), 1), number)
        # idle rows are those with the fewest visual tokens; alone, every row is
        active = torch.tensor([count > min(step.counts) for count in step.counts])
        return KeepKV(index, active if self.how == "idle" else ~active | True)


class Force:
    """A logits processor that makes `generate` write given ids."""

    def __init__(self, ids: Tensor, prompt: int) -> None:
        self.ids, self.step = ids, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        only = torch.full_like(scores, -torch.inf)
        only[:, self.ids[self.step]] = 0.0
        self.step += 1
        return only


@torch.no_grad()
def masked_decode(
    model: Any, inputs: dict[str, Any], ratio: float = 0.0, only: int | None = None
) -> Float[Tensor, "steps vocabulary"]:
    """Greedy decoding of one prompt with the whole cache, later layers' masks hiding what `TopKV` would not read.

    With `only`, a single visual entry is read instead. Attention weights come from the model's own eager path.
    """
    given, visual = model.config._attn_implementation, visual_places(model, inputs)
    start = unpatched(model, inputs, max_new_tokens=1)
    cache, total, found = start.past_key_values, torch.zeros(int(visual.sum())), [start.logits[0]]
    positions = _next_positions(model, inputs)
    try:
        model.set_attn_implementation("eager")
        for step in range(STEPS - 1):
            token, length = found[-1].argmax(-1, keepdim=True), cache.get_seq_length()
            options = {"input_ids": token, "position_ids": positions + step, "past_key_values": cache}
            weights = model(**options, output_attentions=True).attentions[AFTER][0, :, 0, :]
            cache.crop(-1)
            total += weights[:, : len(visual)][:, visual].mean(dim=0)
            chosen = total.argsort(descending=True)[: int(len(total) * ratio)]
            chosen = chosen if only is None else torch.tensor([only])
            hidden = visual.clone()
            hidden[visual.nonzero().squeeze(1)[chosen]] = False
            mask = torch.zeros(1, 1, 1, length + 1)
            mask[..., : len(hidden)].masked_fill_(hidden, torch.finfo(mask.dtype).min)
            with _masks_after(model, mask):
                found.append(model(**options).logits[:, -1])
    finally:
        model.set_attn_implementation(given)
    return torch.cat(found).float()


def _next_positions(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Position of the first generated token, on every axis."""
    return full_positions(model, inputs)[..., -1:] + 1


@contextmanager
def _masks_after(model: Any, mask: Tensor) -> Iterator[None]:
    """While open, layers behind the prune point are given this additive mask."""

    def swap(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"attention_mask": mask}

    layers = model.get_decoder().layers[AFTER + 1 :]
    handles = [layer.register_forward_pre_hook(swap, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
