"""Second turns: what a cache filled under `applied` holds, so that callers may go on with their full-length ids.

The cache of an earlier call holds fewer tokens than the conversation the caller knows. Its columns are remembered,
weakly keyed by the cache object, and put in front of the next turn's.
"""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor

from vidsieve.adapters.decoder.cached_columns import CachedColumns
from vidsieve.adapters.prompt.columns import Columns
from vidsieve.framework.errors import InputError


@dataclass(frozen=True, eq=False, kw_only=True)
class Past:
    """A finished call: the ids it returned (`prompt` of them its full prompt), and the short prompt's columns."""

    ids: Int[Tensor, "rows total"]
    prompt: int
    columns: Columns
    gapped: bool
    held: tuple[CachedColumns | None, ...] | None = None
    """What each layer's cache holds of the columns, after pruning inside the decoder."""
    single: bool = True
    """Whether the cache has one row for each prompt; with beams or several answers a prompt it has more."""


_PASTS: WeakKeyDictionary[Any, Past] = WeakKeyDictionary()


def remember(cache: Any, past: Past) -> None:
    """Keep `past` for as long as `cache` lives."""
    _PASTS[cache] = past


def recall(cache: Any) -> Past | None:
    """What is known of a cache; None for no cache and for caches filled elsewhere."""
    return None if cache is None else _PASTS.get(cache)


def cached_columns(past: Past, length: int) -> tuple[Columns, int]:
    """The columns of everything in the cache, `length` of them, and how many full-length ids they stand for.

    Raises:
        InputError: the cache was cropped into the prompt, or has several rows a prompt.
    """
    if not past.single:
        raise InputError(
            "past_key_values: was made with beams or several sequences a prompt, so its rows are not the prompts'; "
            "only a cache of one sequence a prompt can be continued."
        )
    short = past.columns
    generated = length - short.width
    if generated < 0:
        raise InputError(
            f"past_key_values: holds {length} tokens, fewer than the {short.width} of the prompt it was made with; "
            "a cache cropped into its prompt cannot be continued. Start again without past_key_values."
        )
    seen = past.prompt + generated
    ids = past.ids[:, past.prompt : seen]
    steps = torch.arange(1, generated + 1, device=ids.device)
    text = Columns(
        ids=ids,
        mask=torch.ones_like(ids),
        positions=short.positions[..., -1:] + steps,
        visual=torch.zeros_like(ids, dtype=torch.bool),
    )
    return short.join(text), seen


def cached_layers(past: Past, cache: Any) -> tuple[CachedColumns | None, ...] | None:
    """What each layer's cache holds of everything cached; None where nothing was pruned inside the decoder.

    Raises:
        InputError: the layers of the cache are not as long as the earlier call left them.
    """
    if past.held is None:
        return None
    width = past.columns.width
    generated = int(cache.get_seq_length()) - width
    layers = []
    for number, held in enumerate(past.held):
        layers.append(None if held is None else held.grown(width, generated))
        found = int(cache.get_seq_length(number))
        if held is not None and found != held.width + generated:
            raise InputError(
                f"past_key_values: layer {number} holds {found} tokens where {held.width + generated} were left by "
                "pruning inside the decoder; a cache cropped since cannot be continued. Start again without "
                "past_key_values."
            )
    return tuple(layers)


def new_part(
    past: Past, seen: int, ids: Int[Tensor, "rows total"], mask: Tensor | None
) -> tuple[Int[Tensor, "rows new"], Tensor]:
    """The ids and mask entries that the cache does not hold yet.

    The caller may give the whole conversation, or only the new ids with a mask as long as the conversation.

    Raises:
        InputError: the ids do not go on from what the cache holds.
    """
    if ids.shape[0] != past.ids.shape[0]:
        raise InputError(
            f"past_key_values: was made with {past.ids.shape[0]} prompts, got {ids.shape[0]} to go on with; "
            "pass the same rows."
        )
    if mask is not None and mask.shape[1] != ids.shape[1]:
        return ids, mask[:, -ids.shape[1] :]
    if ids.shape[1] <= seen or not torch.equal(ids[:, :seen], past.ids[:, :seen].to(ids)):
        raise InputError(
            f"input_ids: do not go on from the {seen} tokens that past_key_values holds; pass the sequences that "
            "generate returned, followed by the new turn."
        )
    whole = torch.ones_like(ids) if mask is None else mask
    return ids[:, seen:], whole[:, seen:]
