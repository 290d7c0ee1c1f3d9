"""Rotary positions: those of the uncompressed prompt, and the way they reach a model whose tokens have gaps.

They are passed as `position_ids`, so that compiled code reads them too; `generate` counts on from the last one.
Models with M-RoPE take three position axes behind a contiguous text axis. Models with one axis are given the gaps as
they are, except where a gap would be read as a border between packed sequences: by masks made without a cache
(transformers `find_packed_sequence_indices`), and by FlashAttention (`_is_packed_sequence`). There they are given
contiguous positions, and a pre-hook on the rotary module turns them into the original ones.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn

from vidsieve.adapters.adapter import VideoModel, decoder_of
from vidsieve.adapters.prompt.columns import Columns
from vidsieve.adapters.transformers_internals import attention_name, rotary_of
from vidsieve.adapters.uncompiled import uncompiled

_READS_MASKS_ONLY = ("sdpa", "eager", "flex_attention")
"""Attention implementations that do not read `position_ids`."""


Numbering = Callable[..., Any] | None
"""What numbers a prompt on the three axes of M-RoPE (`rope_index`); None for a model with one axis."""


def reads_types(number: Numbering) -> bool:
    """Whether positions are made from `mm_token_type_ids`: without them such a model silently sees only text."""
    return number is not None and "mm_token_type_ids" in inspect.signature(number).parameters


def text_positions(mask: Shaped[Tensor, "rows columns"]) -> Int[Tensor, "rows columns"]:
    """0, 1, 2, … over the real tokens of each row; 0 on padding."""
    return (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)


def original_positions(
    number: Numbering,
    inputs: Mapping[str, Any],
    ids: Int[Tensor, "rows columns"],
    mask: Shaped[Tensor, "rows columns"],
) -> Int[Tensor, "*axes rows columns"]:
    """The positions the uncompressed model would use, counted from 0; the caller's own if there are any."""
    given = inputs.get("position_ids")
    if given is not None:
        return _axes_of(given, number is not None)[..., -ids.shape[1] :].to(ids.device)
    flat = text_positions(mask)
    if number is None:
        return flat
    grids = [inputs.get(name) for name in ("image_grid_thw", "video_grid_thw")]
    if all(grid is None for grid in grids):
        return flat.expand(3, *flat.shape)
    accepted = inspect.signature(number).parameters
    known = {**inputs, **_other_names(inputs)}
    extra = {name: known[name] for name in accepted if known.get(name) is not None}
    extra |= {"input_ids": ids, "attention_mask": mask}
    return number(**extra)[0]


def trained_positions(
    positions: Int[Tensor, "*axes rows columns"],
    kinds: Int[Tensor, "rows columns"],
    mask: Shaped[Tensor, "rows columns"],
) -> Int[Tensor, "*axes rows columns"]:
    """Number what stands behind a picture from its largest position on, where transformers 5 goes on below it.

    `kinds` is 0 on text and another number on each kind of picture. transformers 5.19 to 5.23 counts on from a
    picture's longer side, so that text behind a video of more steps than that has the positions of its frames; the
    code that Qwen2-VL and its kin came with (transformers 4), and vLLM, count on from the largest of all three axes.
    Models with one axis of positions are left alone.
    """
    if positions.dim() == 2:
        return positions
    highest = positions.amax(dim=0)
    borders = torch.ones_like(kinds, dtype=torch.bool)
    borders[:, 1:] = kinds[:, 1:] != kinds[:, :-1]
    run = borders.long().cumsum(dim=1) - 1
    ends = torch.zeros_like(highest).scatter_reduce_(1, run, highest, "amax", include_self=False)
    behind = borders & mask.bool()
    behind[:, 1:] &= kinds[:, :-1] != 0
    behind[:, 0] = False
    before = ends.gather(1, (run - 1).clamp(min=0))
    shift = torch.where(behind, before + 1 - highest, 0).cumsum(dim=1)
    return torch.where(mask.bool(), positions + shift, positions)


def _other_names(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What Qwen2.5-Omni calls otherwise in its inputs and where it numbers positions."""
    heard = inputs.get("feature_attention_mask")
    lengths = inputs.get("audio_feature_lengths") if heard is None else heard.sum(dim=-1)
    return {"second_per_grids": inputs.get("video_second_per_grid"), "audio_seqlens": lengths}


def _axes_of(given: Tensor, mrope: bool) -> Tensor:
    """The caller's position_ids without the text row that transformers puts in front of M-RoPE's three."""
    if mrope and given.dim() == 2:
        return given.expand(3, *given.shape)
    return given[1:] if mrope and given.shape[0] == 4 else given


_BOUNDED = ("default", "mrope", "proportional", "linear", "yarn", "longrope", "llama3")
"""Kinds of rotary positions that have an end; "dynamic" ones stretch as far as asked, and others are unknown."""


def position_limit(config: Any) -> int | None:
    """How many positions the language model has: `max_position_embeddings`, times what its scaling promises.

    Some configurations give the number before scaling, some the one after it; the larger reading is taken, so that only
    what is surely too long counts as such. None where nothing is said, or a scaling without an end is in use.
    """
    text = config.get_text_config()
    limit, rope = getattr(text, "max_position_embeddings", None), getattr(text, "rope_parameters", None) or {}
    if not isinstance(limit, int) or limit < 1:
        return None
    by_kind = [part for part in rope.values() if isinstance(part, Mapping)] or [rope]  # one a kind of layer, or one
    kinds = {str(part.get("rope_type", "default")) for part in by_kind}
    if not kinds.issubset(_BOUNDED):
        return None
    return int(limit * max(float(part.get("factor") or 1.0) for part in by_kind))


def beyond(
    config: Any, positions: Int[Tensor, "*axes rows columns"], real: Bool[Tensor, "rows columns"]
) -> tuple[int, str] | None:
    """The row that reaches furthest and why, where that is beyond the model's positions; None where all fit.

    Positions are what counts, not tokens: those of the uncompressed prompt stay, however few tokens are kept, and with
    M-RoPE a frame of many tokens takes few of them.
    """
    limit = position_limit(config)
    if limit is None:
        return None
    reached = positions.masked_fill(~real, 0).amax(dim=-1)
    reached = reached.amax(dim=0) if reached.dim() == 2 else reached
    highest = int(reached.max())
    if highest < limit:
        return None
    return int(reached.argmax()), (
        f"the prompt reaches position {highest}, but the model's end at {limit - 1} (max_position_embeddings). Give "
        "fewer or smaller frames, or a model for longer prompts."
    )


def misreads_gaps(model: VideoModel, use_cache: Any) -> bool:
    """Whether a gap in `position_ids` would be read as a border between packed sequences."""
    return use_cache is False or attention_name(decoder_of(model).config) not in _READS_MASKS_ONLY


def model_positions(columns: Columns, *, contiguous: bool = False) -> Int[Tensor, "*axes rows columns"]:
    """`position_ids` for the short prompt; with M-RoPE a contiguous text axis stands in front.

    With `contiguous` a one-axis model is given contiguous positions, for use under `original_rotation`.
    """
    flat = text_positions(columns.mask)
    if columns.positions.dim() == 2:
        return flat if contiguous else columns.positions
    return torch.cat([flat[None], columns.positions.to(flat)], dim=0)


class _Original:
    """Maps the contiguous positions of a short prompt, and of what is generated after it, to the original ones."""

    def __init__(self, columns: Columns) -> None:
        rows, width = columns.ids.shape
        place = text_positions(columns.mask).masked_fill(columns.mask == 0, width)
        table = columns.positions.new_zeros(rows, width + 1)
        self.table = table.scatter(1, place, columns.positions)[:, :width]
        self.length = columns.mask.long().sum(dim=1, keepdim=True)
        self.next = columns.positions[:, -1:] + 1

    def __call__(self, contiguous: Int[Tensor, "rows columns"]) -> Int[Tensor, "rows columns"]:
        """Beams are consecutive rows of one prompt, so each prompt's table serves all of its beams."""
        beams = contiguous.shape[0] // self.table.shape[0]
        table, length, after = (
            part.repeat_interleave(beams, dim=0).to(contiguous.device) for part in (self.table, self.length, self.next)
        )
        known = table.gather(1, contiguous.clamp(max=table.shape[1] - 1))
        return torch.where(contiguous < length, known, contiguous - length + after)


@contextmanager
def original_rotation(model: VideoModel, columns: Columns) -> Iterator[None]:
    """While open, the rotary module of a one-axis model turns contiguous positions into the original ones."""
    original = _Original(columns)

    def swap(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if "position_ids" in kwargs:
            return args, kwargs | {"position_ids": original(kwargs["position_ids"])}
        return (args[0], original(args[1]), *args[2:]), kwargs

    rotary = rotary_of(decoder_of(model))
    with uncompiled, ExitStack() as stack:
        stack.callback(rotary.register_forward_pre_hook(swap, with_kwargs=True).remove)
        yield
