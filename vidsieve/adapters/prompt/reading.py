"""Reading a call's inputs: which videos belong to which row, and whether their placeholders fit. Nothing is run."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from vidsieve.adapters.adapter import Adapter, VideoModel
from vidsieve.adapters.prompt.layouts import VideoLayout
from vidsieve.adapters.vision.encoding import PIXELS
from vidsieve.framework.errors import InputError

_SPECIAL = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "image_token_id", "video_token_id"),
    *("vision_start_token_id", "vision_end_token_id", "vision_token_id"),
    *("image_start_token_id", "image_end_token_id", "video_start_token_id", "video_end_token_id"),
    *("boi_token_id", "eoi_token_id"),
)


def has_video(adapter: Adapter, inputs: Mapping[str, Any]) -> bool:
    """Whether the call brings a video, as pixels or as features; where frames are images, whether it brings any."""
    features = inputs.get("mm_encoder_outputs") or {}
    pixels = any(inputs.get(name) is not None for name in PIXELS[adapter.modality])
    return pixels or features.get(adapter.modality) is not None


def placeholders_of(adapter: Adapter, config: Any, ids: Int[Tensor, "rows columns"]) -> Bool[Tensor, "rows columns"]:
    """Where the prompt holds the features of videos, structural ones included."""
    if adapter.placeholders is not None:
        return adapter.placeholders(config, ids)
    return ids.eq(getattr(config, f"{adapter.modality}_token_id"))


def read_mask(
    ids: Int[Tensor, "rows columns"], given: Tensor | None, pad_id: int | None, eos: Sequence[int]
) -> Shaped[Tensor, "rows columns"]:
    """The caller's mask, or the one `generate` would infer: padding where the pad id stands, unless it ends text."""
    if given is None:
        return torch.ones_like(ids) if pad_id is None or pad_id in eos else (ids != pad_id).long()
    if given.shape != ids.shape:
        raise InputError(
            f"attention_mask: must be 2-D and as long as input_ids {tuple(ids.shape)}, got {tuple(given.shape)}."
        )
    return given


def refuse_right_padding(mask: Shaped[Tensor, "rows columns"]) -> None:
    """Refuse rows that `generate` would continue from their padding, whose answers no policy can make right.

    Raises:
        InputError: a row ends in padding.
    """
    padded = (mask[:, -1] == 0).nonzero().flatten().tolist()
    if padded:
        raise InputError(
            f"attention_mask: rows {', '.join(map(str, padded))} end in padding, from which `generate` would continue "
            "them. Pad on the left: set `padding_side` of the processor's tokenizer to 'left'. (`compress` takes "
            "padding on either side.)"
        )


def filler_id(model: VideoModel, *wanted: int | None) -> int:
    """An id for filled-up columns: the first of `wanted` that the model can embed, else 0.

    They are masked, so any id that is no placeholder will do; configurations may name one beyond the vocabulary.
    """
    known = model.get_input_embeddings().weight.shape[0]
    return next((int(one) for one in wanted if one is not None and 0 <= int(one) < known), 0)


def videos_by_row(
    adapter: Adapter,
    config: Any,
    inputs: Mapping[str, Any],
    ids: Int[Tensor, "rows columns"],
    placeholders: Bool[Tensor, "rows columns"],
) -> list[list[VideoLayout]]:
    """The videos of each row (where frames are images, all pictures), in order of appearance.

    Raises:
        InputError: the placeholders of a row are not exactly filled by the next videos.
    """
    layouts = adapter.layouts(config, {**inputs, "input_ids": ids}) if has_video(adapter, inputs) else []
    left = list(layouts)
    rows: list[list[VideoLayout]] = []
    for row, count in enumerate(placeholders.sum(dim=1).tolist()):
        taken: list[VideoLayout] = []
        while left and sum(video.placeholders for video in taken) < count:
            taken.append(left.pop(0))
        if sum(video.placeholders for video in taken) != count:
            raise InputError(_misfit(row, count, taken, layouts))
        rows.append(taken)
    if left:
        raise InputError(
            f"model inputs: {len(layouts)} videos came, but the prompts have placeholders for "
            f"{len(layouts) - len(left)} only; expand every video's token in the text to as many "
            "placeholders as it has feature rows."
        )
    return rows


def _misfit(row: int, count: int, taken: Sequence[VideoLayout], layouts: Sequence[VideoLayout]) -> str:
    sizes = " + ".join(str(video.placeholders) for video in taken) or "none"
    came = "no video came with it" if not layouts else f"its videos have {sizes} feature rows"
    return (
        f"model inputs, row {row}: the prompt has {count} video placeholders, but {came}. Pass input_ids and videos of "
        "one and the same processor call."
    )


def special_ids(adapter: Adapter, model: VideoModel) -> set[int]:
    """Ids that are no words, as far as the configurations know them."""
    found: set[int] = set()
    for config in (model.config, model.config.get_text_config(), getattr(model, "generation_config", None)):
        for name in _SPECIAL:
            value = getattr(config, name, None)
            found.update(value if isinstance(value, list | tuple) else () if value is None else (value,))
    return found


def question_ids(
    adapter: Adapter,
    model: VideoModel,
    ids: Int[Tensor, " columns"],
    real: Bool[Tensor, " columns"],
    visual: Bool[Tensor, " columns"],
) -> Int[Tensor, " words"]:
    """The text after the last visual token of a row, without padding and special tokens."""
    after = visual.flip(0).cumsum(0).flip(0) == 0
    special = torch.tensor(sorted(special_ids(adapter, model)), device=ids.device)
    word = after & real & ~torch.isin(ids, special)
    if adapter.special_from is not None:
        word &= ids < adapter.special_from
    return ids[word]
