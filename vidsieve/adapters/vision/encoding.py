"""One pass of the vision side, and putting features back into the container that the model reads."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from vidsieve.adapters.adapter import VideoModel
from vidsieve.adapters.layouts import VideoLayout
from vidsieve.adapters.transformers_internals import broken, needed, vision_encoder
from vidsieve.framework.errors import InputError

PIXELS = {"image": ("pixel_values", "pixel_values_images"), "video": ("pixel_values_videos",)}


@dataclass(frozen=True, eq=False)
class Vision:
    """Features of all pictures, from one pass of the vision tower or one a video, and a sample of the model's output.

    `levels` are further rows for the same places, level by level (DeepStack); None where there are none.
    """

    sample: Any
    features: list[Tensor]
    levels: list[list[Tensor]] | None

    @classmethod
    def of(cls, outputs: Sequence[Any]) -> "Vision | None":
        """What these outputs hold together; None without any."""
        found = [output for output in outputs if output is not None]
        if not found:
            return None
        deep = [getattr(output, "deepstack_features", None) for output in found]
        levels = None if deep[0] is None else [[*chain(*level)] for level in zip(*deep, strict=True)]
        return cls(found[0], [part for output in found for part in needed(output, "pooler_output")], levels)


def encode(model: VideoModel, modality: str, inputs: Mapping[str, Any]) -> Any:
    """The model's output for "image" or "video": features the caller brought, or one pass of the vision tower.

    None if there is nothing of that modality.
    """
    given = (inputs.get("mm_encoder_outputs") or {}).get(modality)
    if given is not None:
        return given
    if all(inputs.get(name) is None for name in PIXELS[modality]):
        return None
    encoder = vision_encoder(model, modality)
    if encoder is None:
        raise broken(f"{type(model.base_model).__name__} has no `get_{modality}_features`")
    read = (name for name in inspect.signature(encoder).parameters if name != "kwargs")
    taken = {name: inputs[name] for name in read if inputs.get(name) is not None}
    return encoder(**taken, return_dict=True)


def rows_of(features: Sequence[Tensor] | Tensor, layouts: Sequence[VideoLayout]) -> list[Tensor]:
    """Feature rows of each picture, [rows dim], however the model cut them into parts and axes.

    Raises:
        InputError: there are not as many as the layouts say.
    """
    parts = [part.flatten(0, -2) for part in features]
    wanted = [layout.rows for layout in layouts]
    if [len(part) for part in parts] == wanted:
        return parts
    found = sum(len(part) for part in parts)
    if found != sum(wanted):
        raise InputError(
            f"model inputs: the pictures have {found} feature rows where their shapes say {sum(wanted)}; pass the "
            "output of the model's own get_..._features unchanged."
        )
    return list(torch.cat(parts).split(wanted))


def repack(output: Any, features: Sequence[Tensor], deepstack: Sequence[Sequence[Tensor]] | None) -> Any:
    """A fresh output of the same kind that holds these features, one tensor a video."""
    joined, framed = isinstance(output.pooler_output, Tensor), output.pooler_output[0].dim() == 3
    return packed(type(output), features, deepstack, joined=joined, framed=framed)


def packed(
    kind: type, features: Sequence[Tensor], deepstack: Sequence[Sequence[Tensor]] | None, *, joined: bool, framed: bool
) -> Any:
    """An output of a class of transformers' that holds these features, one tensor a video.

    A model that makes one tensor for all videos (`joined`) gets one again. Its first axis is what `generate` regroups
    for beams, so its slices must not cross a video: their length is a common divisor of the videos' lengths. Parts
    with a frame axis (`framed`) keep one, of single rows, because `generate` counts a part's rows by its first axis.
    """
    pooled: Any = [rows[:, None] for rows in features] if framed else list(features)
    if joined:
        length = math.gcd(*(len(rows) for rows in features))
        pooled = torch.cat(pooled).unflatten(0, (-1, length))
    fields: dict[str, Any] = {"pooler_output": pooled}
    if deepstack is not None:
        fields["deepstack_features"] = [list(level) for level in deepstack]
    return kind(**fields)
