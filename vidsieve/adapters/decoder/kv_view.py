"""Which cached columns a decode step reads: gathered keys and values, and the mask columns that belong to them."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidsieve.adapters.decoder.attention_taps import AttentionCall
from vidsieve.adapters.prompt.columns import kept_order


@dataclass(frozen=True, eq=False)
class View:
    """The columns read by later layers in one step; `real` is None when no row needs filling up."""

    order: Int[Tensor, "rows read"]
    real: Bool[Tensor, "rows read"] | None

    @classmethod
    def of(cls, keep: Bool[Tensor, "rows held"], counts: list[int], later: int) -> "View":
        """The view of the entries `keep` that a layer holds of the prompt (with `counts` a row), and of `later` ones.

        Rows that read fewer are filled up and masked.
        """
        rows, held = keep.shape
        order, real = kept_order(keep, max(counts))
        behind = torch.arange(held, held + later, device=order.device).expand(rows, -1)
        filled = None
        if min(counts) < max(counts):
            filled = torch.cat([real, torch.ones_like(behind, dtype=torch.bool)], dim=1)
        return cls(torch.cat([order, behind], dim=1), filled)

    def run(self, call: AttentionCall) -> Any:
        """The kernel on the columns of this view."""
        return call.run(self._rows(call.key), self._rows(call.value), self._mask(call))

    def _rows(self, states: Tensor) -> Tensor:
        """Keys or values at the columns read."""
        order = self.order.to(states.device)
        if states.shape[0] == 1:
            return states.index_select(2, order[0])
        return states.gather(2, order[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))

    def _mask(self, call: AttentionCall) -> Tensor | None:
        """The kernel's mask at the columns read, with filled-up columns masked: 2-D for FlashAttention, else 4-D."""
        mask, device = call.mask, call.query.device
        order = self.order.to(device)
        real = None if self.real is None else self.real.to(device)
        if mask is None and real is None:
            return None
        if mask is None:
            assert real is not None
            if "flash" in call.implementation:
                return real
            mask, real = real[:, None, None, :], None
            return mask if call.implementation != "eager" else _additive(mask, call.query.dtype)
        shape = (order.shape[0], *[1] * (mask.dim() - 2), order.shape[1])
        picked = mask.expand(order.shape[0], *mask.shape[1:]).gather(
            -1, order.view(shape).expand(-1, *mask.shape[1:-1], -1)
        )
        if real is None:
            return picked
        off = ~real.view(shape)
        return picked & ~off if picked.dtype == torch.bool else picked.masked_fill(off, _lowest(picked.dtype))


def _lowest(dtype: torch.dtype) -> float | int:
    """What masks a column out: the lowest float for additive masks, 0 for integer ones."""
    return torch.finfo(dtype).min if dtype.is_floating_point else 0


def _additive(mask: Bool[Tensor, "rows one one2 read"], dtype: torch.dtype) -> Float[Tensor, "rows one one2 read"]:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def attention_row(call: AttentionCall, read: Bool[Tensor, "rows keys"]) -> Float[Tensor, "rows heads keys"]:
    """Softmaxed attention of the newest token over all columns it reads, in float32, without repeating keys."""
    rows, heads, _, dim = call.query.shape
    key = call.key[:, :, : read.shape[1]].float()
    query = call.query.float().view(rows, key.shape[1], -1, dim)
    scaling = call.options.get("scaling")
    logits = torch.einsum("bhgd,bhsd->bhgs", query, key) * (dim**-0.5 if scaling is None else scaling)
    logits = logits.masked_fill(~read.to(key.device)[:, None, None, :], -torch.inf)
    return logits.softmax(dim=-1).view(rows, heads, -1)
