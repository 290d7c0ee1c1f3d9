"""FlashAttention-2 as transformers calls it, with kernels written out in plain torch: its real path, on any machine."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers.modeling_flash_attention_utils as utils
from torch import Tensor


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None, causal: bool) -> Tensor:
    """Softmax attention of one sequence [new heads dim], aligned at the bottom right as FlashAttention is."""
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    logits = torch.einsum("qhd,khd->hqk", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        allowed = torch.ones(logits.shape[1:], dtype=torch.bool).tril(key.shape[0] - query.shape[0])
        logits = logits.masked_fill(~allowed, -torch.inf)
    return torch.einsum("hqk,khd->qhd", logits.softmax(dim=-1), value)


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: Any = None, causal: bool = False
) -> Tensor:
    """A batch without padding."""
    return torch.stack([_attend(*one, softmax_scale, causal) for one in zip(q, k, v, strict=True)])


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: Any,
    max_seqlen_k: Any,
    dropout_p: float = 0.0,
    softmax_scale: Any = None,
    causal: bool = False,
) -> Tensor:
    """Sequences of different lengths, one behind the other."""
    parts = []
    ends = list(zip(cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), strict=True))
    for (q0, k0), (q1, k1) in itertools.pairwise(ends):
        parts.append(_attend(q[q0:q1], k[k0:k1], v[k0:k1], softmax_scale, causal))
    return torch.cat(parts)


@contextmanager
def flash_attention(model: Any, config: Any = None) -> Iterator[None]:
    """While open, the language model of `model`, or what has `config`, runs transformers' FlashAttention-2 path."""
    config, found = config or model.get_decoder().config, {}
    ours = (flash_attn_func, flash_attn_varlen_func, None, utils._pad_input, utils._unpad_input)
    for name, value in (("_lazy_imports", lambda *_, **__: ours), ("_loaded_implementation", None)):
        found[name] = getattr(utils, name)
        setattr(utils, name, value)
    given = config._attn_implementation
    config._attn_implementation_internal = "flash_attention_2"
    try:
        yield
    finally:
        config._attn_implementation_internal = given
        for name, value in found.items():
            setattr(utils, name, value)
        utils._loaded_implementation = None
