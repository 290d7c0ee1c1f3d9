"""Clips to the inputs of LLaVA-OneVision and LLaVA-NeXT-Video."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import UInt8
from torch import Tensor
from transformers import PretrainedConfig

from vidsieve.framework.errors import InputError
from vidsieve.media.clip import Clip
from vidsieve.media.encoder import Encoded, Encoder, check_fixed_size
from vidsieve.media.llava import centre_crop, llava_pixels, short_edge_size
from vidsieve.media.pixels import CLIP_MEAN, CLIP_STD, resize_frames
from vidsieve.media.settings import Settings


@dataclass(frozen=True)
class LlavaOnevisionEncoder(Encoder):
    """Every frame is squeezed to height x width; tokens_per_frame after pooling, and one newline a video."""

    height: int
    width: int
    tokens_per_frame: int
    resample: str
    normalisation: dict[str, Any]

    resolution_is_fixed: ClassVar[bool] = True
    takes_token_types: ClassVar[bool] = False

    @classmethod
    def from_settings(
        cls, model_config: PretrainedConfig, settings: Settings, max_pixels: int | None
    ) -> "LlavaOnevisionEncoder":
        """From the checkpoint's settings; the vision tower's image size where none are given."""
        vision = model_config.vision_config
        height, width = box(settings.video.get("size"), vision.image_size)
        check_fixed_size("LLaVA-OneVision", height, width, max_pixels)
        side = math.ceil(vision.image_size // vision.patch_size / 2)
        normalisation = settings.normalisation(CLIP_MEAN, CLIP_STD)
        return cls(height, width, side**2, settings.resample, normalisation)

    def encode(self, clips: Sequence[Clip]) -> Encoded:
        """`pixel_values_videos` [videos frames 3 height width]."""
        frames = [resize_frames(c.frames, self.height, self.width, mode=self.resample) for c in clips]
        tokens = [len(clip.frames) * self.tokens_per_frame + 1 for clip in clips]
        return Encoded(stacked(frames, self.normalisation), tokens)

    def describe(self) -> str:
        return f"{self.width} x {self.height} pixels a frame"


@dataclass(frozen=True)
class LlavaNextVideoEncoder(Encoder):
    """The shorter edge of every frame is resized, then the centre height x width is cut out."""

    short_edge: int
    height: int
    width: int
    tokens_per_frame: int
    resample: str
    normalisation: dict[str, Any]

    resolution_is_fixed: ClassVar[bool] = True
    takes_token_types: ClassVar[bool] = False

    @classmethod
    def from_settings(
        cls, model_config: PretrainedConfig, settings: Settings, max_pixels: int | None
    ) -> "LlavaNextVideoEncoder":
        """From the checkpoint's settings; the vision tower's image size where none are given."""
        vision, video = model_config.vision_config, settings.video
        height, width = box(video.get("crop_size"), vision.image_size)
        check_fixed_size("LLaVA-NeXT-Video", height, width, max_pixels)
        short_edge = (video.get("size") or {}).get("shortest_edge") or min(height, width)
        stride = model_config.spatial_pool_stride
        tokens = (height // vision.patch_size // stride) * (width // vision.patch_size // stride)
        normalisation = settings.normalisation(CLIP_MEAN, CLIP_STD)
        return cls(short_edge, height, width, tokens, settings.resample, normalisation)

    def encode(self, clips: Sequence[Clip]) -> Encoded:
        """`pixel_values_videos` [videos frames 3 height width]."""
        frames = [self._cropped(clip.frames) for clip in clips]
        tokens = [len(clip.frames) * self.tokens_per_frame for clip in clips]
        return Encoded(stacked(frames, self.normalisation), tokens)

    def describe(self) -> str:
        return f"{self.width} x {self.height} pixels a frame, cut from the centre"

    def _cropped(
        self, frames: UInt8[Tensor, "frames 3 height width"]
    ) -> UInt8[Tensor, "frames 3 new_height new_width"]:
        height, width = short_edge_size(frames.shape[-2], frames.shape[-1], self.short_edge)
        return centre_crop(resize_frames(frames, height, width, mode=self.resample), self.height, self.width)


def box(size: Any, fallback: int) -> tuple[int, int]:
    """(height, width) of a `size` setting: a number, height and width, or a shortest edge."""
    if isinstance(size, int):
        return size, size
    size = size or {}
    edge = size.get("shortest_edge") or fallback
    return size.get("height") or edge, size.get("width") or edge


def stacked(frames: Sequence[Tensor], normalisation: dict[str, Any]) -> dict[str, Tensor]:
    """Normalised `pixel_values_videos`; InputError unless all videos have as many frames."""
    counts = sorted({len(f) for f in frames})
    if len(counts) > 1:
        raise InputError(
            f"clips: LLaVA takes videos of equal frame count in one call, got {counts}; "
            "run them one at a time, or sample longer videos by count"
        )
    return {"pixel_values_videos": llava_pixels(torch.stack(list(frames)), **normalisation)}
