"""Reading a call's inputs: which videos belong to which row, whether their placeholders fit, and which are new.

Nothing is run. In a further turn callers pass the pictures of the whole conversation; the cache holds the earlier ones.
"""

from collections.abc import Mapping, Sequence
from itertools import chain, groupby
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vidsieve.adapters.adapter import Adapter, VideoModel
from vidsieve.adapters.layouts import PACES, VideoLayout
from vidsieve.adapters.transformers_internals import vision_inputs
from vidsieve.adapters.vision.encoding import PIXELS, Vision, repack, rows_of
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


_Rows = list[list[VideoLayout]]
"""The pictures of each prompt."""


def new_inputs(
    adapter: Adapter,
    model: VideoModel,
    inputs: Mapping[str, Any],
    whole: Int[Tensor, "rows total"],
    new: Int[Tensor, "rows new"],
) -> dict[str, Any]:
    """The inputs of a call that continues a cache, with the pictures of its `new` ids only.

    The last ones of each prompt are taken where those of the `whole` conversation came.

    Raises:
        InputError: the pictures that came fit neither the new ids nor the conversation.
    """
    taken = dict(inputs)
    for modality in dict.fromkeys(("image", adapter.modality)):
        names = vision_inputs(model, modality)
        if modality == adapter.modality:
            names += [*adapter.spent, *PACES]
        came = {name: inputs[name] for name in names if inputs.get(name) is not None}
        features = (inputs.get("mm_encoder_outputs") or {}).get(modality)
        chosen = None
        if not bool(_places(adapter, model.config, modality, new).any()):
            taken = {name: value for name, value in taken.items() if name not in names}
            features = None
        elif features is not None or any(name in came for name in PIXELS[modality]):
            chosen = _choose(adapter, model.config, inputs, modality, whole, new)
        if chosen is not None:
            rows, keep = chosen
            taken |= _sliced(adapter, came, modality, rows, keep)
            features = None if features is None else _of(features, [*chain(*rows)], keep)
        if inputs.get("mm_encoder_outputs") is not None:
            others = {name: value for name, value in taken["mm_encoder_outputs"].items() if name != modality}
            taken["mm_encoder_outputs"] = others | ({} if features is None else {modality: features})
    return taken


def _places(adapter: Adapter, config: Any, modality: str, ids: Tensor) -> Tensor:
    """Where the ids hold the features of a modality."""
    videos = placeholders_of(adapter, config, ids)
    return videos if modality == adapter.modality else ids.eq(config.image_token_id) & ~videos


def _choose(
    adapter: Adapter, config: Any, inputs: Mapping[str, Any], modality: str, whole: Tensor, new: Tensor
) -> tuple[_Rows, list[int]] | None:
    """The pictures of the whole conversation and the numbers of the new ones; None where only the new ones came."""
    read = _videos if modality == adapter.modality else _images
    if read(adapter, config, inputs, new) is not None:
        return None
    rows = read(adapter, config, inputs, whole)
    counts = _places(adapter, config, modality, new).sum(dim=1).tolist()
    keep: list[int] = []
    for row, count in enumerate(counts):
        own = [] if rows is None else rows[row]
        sizes = [sum(one.placeholders for one in own[len(own) - k :]) for k in range(len(own) + 1)]
        last = sizes.index(count) if count in sizes else None
        if rows is None or last is None:
            total = int(_places(adapter, config, modality, whole).sum())
            raise InputError(
                f"model inputs: the {modality}s that came with past_key_values fit neither the {sum(counts)} "
                f"placeholders of the new ids nor the {total} of the whole conversation. Pass the {modality}s of the "
                "new turn, or all of the conversation, row by row."
            )
        first = sum(map(len, rows[:row]))
        keep += range(first + len(own) - last, first + len(own))
    assert rows is not None
    return rows, keep


def _videos(adapter: Adapter, config: Any, inputs: Mapping[str, Any], ids: Tensor) -> _Rows | None:
    """The videos of each prompt (where frames are images, all pictures); None where the placeholders do not fit."""
    types = inputs.get("mm_token_type_ids")
    if types is not None and types.shape[1] < ids.shape[1]:
        inputs = {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}
    try:
        return videos_by_row(adapter, config, inputs, ids, placeholders_of(adapter, config, ids))
    except InputError:
        return None


def _images(adapter: Adapter, config: Any, inputs: Mapping[str, Any], ids: Tensor) -> _Rows | None:
    """The images beside videos, one for each run of placeholders; None where they are not as many as came."""
    places = _places(adapter, config, "image", ids)
    rows = [
        [VideoLayout(0, 0, (0, 0, 0), structural=len([*run])) for is_place, run in groupby(row) if is_place]
        for row in places.tolist()
    ]
    grid, features = inputs.get("image_grid_thw"), (inputs.get("mm_encoder_outputs") or {}).get("image")
    pixels = next((inputs[name] for name in PIXELS["image"] if inputs.get(name) is not None), None)
    came = next(one for one in (grid, pixels, None if features is None else features.pooler_output) if one is not None)
    return rows if sum(map(len, rows)) == len(came) else None


def _sliced(
    adapter: Adapter, came: Mapping[str, Any], modality: str, rows: _Rows, keep: Sequence[int]
) -> dict[str, Any]:
    """These inputs with the entries of the pictures `keep` only."""
    if came.get("batch_num_images") is not None:
        raise InputError(
            "batch_num_images: says how images are cut in the whole conversation, so the new ones' pixels cannot be "
            "taken from it; pass the images of the new turn alone."
        )
    flat = [*chain(*rows)]
    grid, frames = came.get(f"{modality}_grid_thw"), came.get("num_frames_per_video")
    patches = [1] * len(flat) if grid is None else grid.prod(-1).tolist()
    entries = patches if frames is None else frames.tolist()
    long = {name: entries for name in (*PIXELS[modality], "video_position_ids")}
    long["video_compression_mask"] = [layout.visual for layout in flat]
    sliced: dict[str, Any] = {}
    for name, value in came.items():
        if not isinstance(value, Tensor | list) or name == "mm_token_type_ids":
            continue
        if adapter.modality == "image" and isinstance(value, Tensor):
            by_row = came["pixel_values"].dim() == 5
            sliced[name] = _rows_of_tiles(value, rows, keep) if by_row else _tiles(value, rows, keep)
        elif isinstance(value, Tensor):
            parts = value.split(long.get(name, [1] * len(flat)))
            sliced[name] = torch.cat([parts[number] for number in keep])
        else:
            sliced[name] = [value[number] for number in keep]
    return sliced


def _tiles(value: Tensor, rows: _Rows, keep: Sequence[int]) -> Tensor:
    """The tiles of pictures, one behind the other."""
    counts = [layout.rows for layout in chain(*rows)]
    parts = value.split([count * len(value) // sum(counts) for count in counts])
    return torch.cat([parts[number] for number in keep])


def _rows_of_tiles(value: Tensor, rows: _Rows, keep: Sequence[int]) -> Tensor:
    """The same, where the tiles of a prompt are a row, filled up with zeros; prompts without pictures have none."""
    counts = [[layout.rows for layout in row] for row in rows if row]
    one, number, taken = max(map(sum, counts)) // value.shape[1], 0, []
    for part, row in zip(value, counts, strict=True):
        parts = part[: sum(row) // one].split([count // one for count in row])
        own = [tiles for place, tiles in enumerate(parts) if number + place in keep]
        taken += [torch.cat(own)] if own else []
        number += len(row)
    return torch.nn.utils.rnn.pad_sequence(taken, batch_first=True)


def _of(features: Any, layouts: Sequence[VideoLayout], keep: Sequence[int]) -> Any:
    """The vision side's output for the pictures `keep`."""
    vision = Vision.of([features])
    assert vision is not None

    def chosen(parts: Sequence[Tensor]) -> list[Tensor]:
        split = rows_of(parts, layouts)
        return [split[number] for number in keep]

    deep = None if vision.levels is None else [chosen(level) for level in vision.levels]
    return repack(vision.sample, chosen(vision.features), deep)
