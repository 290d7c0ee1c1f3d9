"""Further turns: what a cache filled under `applied` holds, so that callers may continue with their full-length ids.

Such a cache holds fewer tokens than the conversation the caller knows. What is known of it is an attribute of the
cache, so copies and pickles carry it. While tokens are missing, the cache is of a class that only a call under
`applied` may extend: elsewhere full-length ids would meet a shorter cache, silently.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache as cached
from typing import Any, NoReturn

import torch
from jaxtyping import Int
from torch import Tensor

from vidsieve.adapters.prompt.columns import CachedColumns, Columns
from vidsieve.framework.errors import InputError

_NAME = "vidsieve_past"
_AGAIN = "Start again without past_key_values."


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

    @property
    def whole(self) -> bool:
        """Whether the cache holds every token of the conversation."""
        return self.held is None and self.columns.width == self.prompt

    def rows(self, index: Int[Tensor, " rows"]) -> "Past":
        """What the rows of the cache at `index` hold."""
        if not self.single:
            return self
        held = None if self.held is None else tuple(None if one is None else one.rows(index) for one in self.held)
        ids = self.ids.index_select(0, index.to(self.ids.device))
        return replace(self, ids=ids, columns=self.columns.rows(index), held=held)


class _Shortened:
    """Mixin of a cache's class while tokens of its conversation are missing: rows move, nothing is added."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        past: Past = vars(self)[_NAME]
        least = min([past.columns.width, *(one.width for one in past.held or () if one is not None)])
        raise InputError(
            f"past_key_values: was filled under `applied` and holds {least} of the {past.prompt} tokens of its prompt"
            f"{'' if past.held is None else ' in some layers'}. An ordinary call's ids and positions do not fit it: "
            "continue by `model.generate` inside `with applied(model, policy)`, or start again without "
            "past_key_values."
        )

    update = get_mask_sizes = _refuse
    # read by `generate` before the model runs
    is_compileable = property(_refuse)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._move(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._move(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self._move(torch.arange(len(vars(self)[_NAME].ids)).repeat_interleave(repeats))

    def _move(self, index: Any) -> None:
        past: Past = vars(self)[_NAME]
        places = torch.arange(len(past.ids))[torch.as_tensor(index, device="cpu")]
        vars(self)[_NAME] = past.rows(places)

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        _forget(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _restored, (_plain_class(self),), vars(self)


@cached
def _shortened_class(plain: type) -> type:
    made: type = type(f"Shortened{plain.__name__}", (_Shortened, plain), {"__module__": __name__})
    return made


def _plain_class(cache: Any) -> type:
    """The class that the cache had when it was filled."""
    kind = type(cache)
    return kind.__mro__[2] if issubclass(kind, _Shortened) else kind


def _restored(plain: type) -> Any:
    """An empty copy of a shortened cache; its attributes are filled in by `copy` or `pickle`."""
    return object.__new__(_shortened_class(plain))


def _forget(cache: Any) -> None:
    cache.__class__ = _plain_class(cache)
    vars(cache).pop(_NAME, None)


def remember(cache: Any, past: Past) -> None:
    """Make `past` travel with `cache`; while tokens are missing, ordinary calls refuse the cache."""
    setattr(cache, _NAME, past)
    plain = _plain_class(cache)
    cache.__class__ = plain if past.whole else _shortened_class(plain)


def recall(cache: Any) -> Past | None:
    """What is known of a cache; None for no cache, an empty one, and caches filled elsewhere."""
    past: Past | None = None if cache is None else getattr(cache, _NAME, None)
    if past is None:
        return None
    length = int(cache.get_seq_length())
    known = past.columns.width + past.ids.shape[1] - past.prompt
    if length == 0 or (past.whole and length > known):
        _forget(cache)
        return None
    return past


@contextmanager
def extending(cache: Any, past: Past | None, broken_off: Callable[[], Past]) -> Iterator[None]:
    """While open, transformers may extend `cache`; if the call fails, what it left there is remembered."""
    before = int(cache.get_seq_length())
    cache.__class__ = _plain_class(cache)
    try:
        yield
    except BaseException:
        past = past if int(cache.get_seq_length()) == before else broken_off()
        if past is not None:
            remember(cache, past)
        raise


def check_room(cache: Any, tokens: int) -> None:
    """Refuse a cache of fixed size that cannot hold as many tokens as the call will put there.

    Raises:
        InputError: it is too small.
    """
    static = [layer for layer in getattr(cache, "layers", ()) if not getattr(layer, "is_sliding", False)]
    room = min((layer.max_cache_len for layer in static if hasattr(layer, "max_cache_len")), default=tokens)
    if tokens > room:
        raise InputError(
            f"past_key_values: has room for {room} tokens, but {tokens} would be cached; pass a {type(cache).__name__} "
            "with a larger `max_cache_len`, or leave past_key_values out."
        )


def cached_columns(past: Past, cache: Any) -> tuple[Columns, int]:
    """The columns of everything in the cache, and how many full-length ids they stand for.

    Raises:
        InputError: the cache was cropped into the prompt, has several rows a prompt, or was changed by other means.
    """
    if not past.single:
        raise InputError(
            "past_key_values: was made with beams or several sequences a prompt, so its rows are not the prompts'; "
            "only a cache of one sequence a prompt can be continued."
        )
    short, length = past.columns, int(cache.get_seq_length())
    generated = length - short.width
    if generated < 0:
        raise InputError(
            f"past_key_values: holds {length} tokens, fewer than the {short.width} of the prompt it was made with; "
            f"a cache cropped into its prompt, or left by a call that failed, cannot be continued. {_AGAIN}"
        )
    known = past.ids.shape[1] - past.prompt
    if generated > known:
        raise InputError(
            f"past_key_values: holds {generated} tokens behind its prompt where the call that filled it returned "
            f"{known}: it was extended by other means, or the call failed. Crop it by {generated - known}, or start "
            "again without past_key_values."
        )
    _check_layers(past, cache, generated)
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


def _check_layers(past: Past, cache: Any, generated: int) -> None:
    """Refuse a cache that was changed in its layers, past its own methods."""
    for number, layer in enumerate(cache.layers):
        keys = getattr(layer, "keys", None)
        if keys is not None and len(keys) != len(past.ids):
            raise InputError(
                f"past_key_values: has {len(keys)} rows where the call that filled it left {len(past.ids)}; select "
                f"rows by the cache's own methods (batch_select_indices, batch_repeat_interleave). {_AGAIN}"
            )
        held = None if past.held is None else past.held[number]
        left = generated + (past.columns.width if held is None else held.width)
        found = int(layer.get_seq_length()) if hasattr(layer, "get_seq_length") else left
        if found != left:
            raise InputError(
                f"past_key_values: layer {number} holds {found} tokens where {left} were left by the call that filled "
                f"it; a cache whose layers were cropped since cannot be continued. {_AGAIN}"
            )


def cached_layers(past: Past, cache: Any) -> tuple[CachedColumns | None, ...] | None:
    """What each layer's cache holds of everything cached; None where nothing was pruned inside the decoder."""
    if past.held is None:
        return None
    width = past.columns.width
    generated = int(cache.get_seq_length()) - width
    return tuple(None if held is None else held.grown(width, generated) for held in past.held)


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
        if mask.shape[1] != seen + ids.shape[1]:
            raise InputError(
                f"attention_mask: covers {mask.shape[1]} tokens, but past_key_values stands for {seen} and "
                f"{ids.shape[1]} came with input_ids; pass a mask of {seen + ids.shape[1]}, over the conversation "
                "before any token was removed."
            )
        return ids, mask[:, seen:]
    if ids.shape[1] <= seen or not torch.equal(ids[:, :seen], past.ids[:, :seen].to(ids)):
        raise InputError(
            f"input_ids: do not continue the {seen} tokens that past_key_values stands for; pass the sequences that "
            "generate returned, followed by the new turn."
        )
    whole = torch.ones_like(ids) if mask is None else mask
    return ids[:, seen:], whole[:, seen:]
