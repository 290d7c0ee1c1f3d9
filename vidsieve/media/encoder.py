"""What a model family makes of the frames of clips: the interface, and what the families' encoders share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import UInt8
from torch import Tensor

from vidsieve.framework.errors import UsageError
from vidsieve.media.clip import Clip


@dataclass(frozen=True, eq=False)
class Encoded:
    """tensors: what `model.generate` takes, all videos together.

    runs: for each video the lengths of its runs of placeholders, between which the prompt has text.
    run_frames: frames that a run stands for, where it is not the whole video.
    """

    tensors: Mapping[str, Tensor]
    runs: Sequence[Sequence[int]]
    run_frames: int = 1

    @classmethod
    def join(cls, parts: "Sequence[Encoded]") -> "Encoded":
        """Put several calls' videos behind one another; pixels of one shape, or none."""
        names = parts[0].tensors
        tensors = {name: torch.cat([part.tensors[name] for part in parts]) for name in names}
        return cls(tensors, [run for part in parts for run in part.runs], parts[0].run_frames)

    @property
    def pixels(self) -> dict[str, Tensor]:
        """The tensors that only the vision tower reads."""
        return {name: tensor for name, tensor in self.tensors.items() if name.startswith("pixel_")}

    def without_pixels(self) -> "Encoded":
        """The same for a model that is given features in place of pixels."""
        rest = {name: tensor for name, tensor in self.tensors.items() if not name.startswith("pixel_")}
        return Encoded(rest, self.runs, self.run_frames)


@dataclass(frozen=True, kw_only=True)
class Encoder(ABC):
    """One family's way from frames to tensors. resample, normalisation: for `resize_frames` and `normalise`."""

    resample: str
    normalisation: dict[str, Any]

    required: ClassVar[Mapping[str, Any]] = {}
    """Settings of transformers' video processor that have one value here, besides those in `settings.REQUIRED`."""

    @abstractmethod
    def encode(self, clips: Sequence[Clip]) -> Encoded:
        """Make the tensors of `clips`, of which there is at least one."""

    def seen(self, frames: UInt8[Tensor, "frames 3 height width"]) -> UInt8[Tensor, "frames 3 rows columns"]:
        """Cut out the part of the frames that visual tokens cover: most families squeeze or resize all of it."""
        return frames

    def check_together(self, clips: Sequence[Clip]) -> None:  # noqa: B027  # most families take any
        """Refuse clips that the model cannot take in one call. Raises InputError."""

    @abstractmethod
    def describe(self) -> str:
        """State the frame size in a few words."""

    @property
    def token_pixels(self) -> int | None:
        """Pixels of a frame that one visual token stands for; None where every frame has one size."""
        return None

    def capped(self, max_pixels: int) -> "Encoder | None":
        """Make the same with frames of at most `max_pixels`, at least one visual token; None for a fixed size."""
        return None


def check_fixed_size(family: str, height: int, width: int, max_pixels: int | None) -> None:
    """Refuse a cap below the one frame size that `family` takes. Raises UsageError."""
    if max_pixels is not None and max_pixels < height * width:
        raise UsageError(
            f"max_pixels: {family} takes every frame at {width} x {height} = {height * width} pixels, "
            f"a cap of {max_pixels} cannot be kept; leave it out and take fewer frames instead"
        )


def check_cap(max_pixels: int | None, token_pixels: int) -> None:
    """Refuse a cap below one visual token. Raises UsageError."""
    if max_pixels is not None and max_pixels < token_pixels:
        raise UsageError(f"max_pixels: a frame has at least {token_pixels} pixels here, got {max_pixels}")
