"""`EncodedVideos`: what a model's vision side made of videos earlier, handed to a call in place of their pixels.

It stands under `mm_encoder_outputs` where transformers takes its own output. Unlike that, it can still give what a
policy asks of the vision side: signals, and the pixels that `reduce_frames` looks at.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vidsieve.adapters.adapter import Adapter
from vidsieve.adapters.layouts import VideoLayout
from vidsieve.adapters.vision.encoding import Vision, packed, rows_of


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodedClip:
    """One video's feature rows, structural ones included, and the same rows of each DeepStack level.

    `signals` have an entry a visual token. `joined` says that the model makes one tensor of all videos; `framed` that
    its parts have an axis of frames.
    """

    rows: Float[Tensor, "rows dim"]
    levels: tuple[Float[Tensor, "rows dim"], ...] = ()
    signals: Mapping[str, Shaped[Tensor, "tokens *dim"]] = field(default_factory=dict)
    joined: bool
    framed: bool

    @classmethod
    def of(cls, output: Any, signals: Mapping[str, Tensor]) -> "EncodedClip":
        """Take a model's output for one video."""
        vision = Vision.of([output])
        assert vision is not None
        return cls(
            rows=_flat(vision.features),
            levels=tuple(_flat(level) for level in vision.levels or ()),
            signals=signals,
            joined=isinstance(output.pooler_output, Tensor),
            framed=output.pooler_output[0].dim() == 3,
        )


def _flat(parts: Sequence[Tensor]) -> Tensor:
    """All rows of one video, however the model cut them into frames."""
    return torch.cat([part.flatten(0, -2) for part in parts])


@runtime_checkable
class VideoSource(Protocol):
    """Where the videos of a call came from, to be asked for more."""

    def signals(self, names: Collection[str]) -> Mapping[str, Tensor]:
        """These signals, an entry a visual token, of all videos in succession."""
        ...

    def pixels(self) -> Mapping[str, Tensor]:
        """The inputs that the vision tower would have been given."""
        ...


@dataclass
class EncodedVideos(BaseModelOutputWithPooling):
    """Features of all videos of a call, as the model's own output holds them.

    `source` is no field: transformers would count it among the tensors. None where only features are known.
    """

    pooler_output: Any = None
    deepstack_features: Any = None

    source = None

    @classmethod
    def of(cls, clips: Sequence[EncodedClip], source: VideoSource | None) -> "EncodedVideos":
        """Join the videos of a call, of one model."""
        levels = [list(level) for level in zip(*(clip.levels for clip in clips), strict=True)] or None
        first = clips[0]
        videos = packed(cls, [clip.rows for clip in clips], levels, joined=first.joined, framed=first.framed)
        videos.source = source
        return videos


def with_pixels(adapter: Adapter, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The inputs of a call whose policy chooses units: with the pixels of videos that came encoded, where they are."""
    given = _given(adapter, inputs)
    if given is None or getattr(given, "source", None) is None:
        return inputs
    return {**inputs, **given.source.pixels()}


def of_units(
    adapter: Adapter,
    inputs: Mapping[str, Any],
    layouts: Sequence[VideoLayout],
    units: Sequence[Bool[Tensor, " units"]],
) -> EncodedVideos | None:
    """What the tower would make of these units alone, taken out of features that came for all; None where none came.

    Units do not see each other (`Adapter.units_independent`), so these are the rows that a pass over them gives.
    """
    given = _given(adapter, inputs)
    if given is None or not adapter.units_independent:
        return None
    vision = Vision.of([given])
    assert vision is not None
    pairs = list(zip(layouts, units, strict=True))

    def chosen(parts: Sequence[Tensor]) -> list[Tensor]:
        return [_of_video(rows, *pair) for rows, pair in zip(rows_of(parts, layouts), pairs, strict=True)]

    levels = None if vision.levels is None else [chosen(level) for level in vision.levels]
    joined, framed = isinstance(given.pooler_output, Tensor), given.pooler_output[0].dim() == 3
    videos = packed(EncodedVideos, chosen(vision.features), levels, joined=joined, framed=framed)
    source = getattr(given, "source", None)
    videos.source = None if source is None else _SomeUnits(source, pairs)
    return videos


def _of_video(
    rows: Float[Tensor, "rows dim"], layout: VideoLayout, units: Bool[Tensor, " units"]
) -> Float[Tensor, "kept dim"]:
    """The rows of some units of a video, and its structural ones."""
    units = units.to(rows.device)
    inner = rows[: layout.rows - layout.structural].unflatten(0, (layout.frames, -1))
    return torch.cat([inner[units].flatten(0, 1), rows[layout.rows - layout.structural :]])


class _SomeUnits:
    """A source of which some units of each video are wanted."""

    def __init__(self, source: VideoSource, pairs: Sequence[tuple[VideoLayout, Tensor]]) -> None:
        self._source, self._pairs = source, pairs

    def signals(self, names: Collection[str]) -> Mapping[str, Tensor]:
        """Signals of the tokens of these units."""
        flags = torch.cat([units.repeat_interleave(layout.tokens) for layout, units in self._pairs])
        return {name: values[flags.to(values.device)] for name, values in self._source.signals(names).items()}

    def pixels(self) -> Mapping[str, Tensor]:
        """The pixels of all units: `Units.without` chooses among them."""
        return self._source.pixels()


def _given(adapter: Adapter, inputs: Mapping[str, Any]) -> Any:
    """The features of videos that came with a call, or None."""
    return (inputs.get("mm_encoder_outputs") or {}).get(adapter.modality)
