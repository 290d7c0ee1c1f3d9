"""Families that take every frame at one size: LLaVA-OneVision, LLaVA-NeXT-Video, Video-LLaVA, InternVL, SmolVLM2.

The rules are those of transformers' video processors of the same names (transformers 5.23, Apache-2.0).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PretrainedConfig

from vidsieve.framework.errors import InputError
from vidsieve.media.clip import Clip
from vidsieve.media.encoder import Encoded, Encoder, check_fixed_size
from vidsieve.media.pixels import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    centre_crop,
    covered,
    normalise,
    resize_frames,
    short_edge_size,
)
from vidsieve.media.settings import Settings

LANCZOS = 1  # PIL's number


@dataclass(frozen=True, kw_only=True)
class FrameEncoder(Encoder):
    """Every frame becomes height x width pixels and tokens_per_frame visual tokens."""

    height: int
    width: int
    tokens_per_frame: int

    required: ClassVar[Mapping[str, Any]] = {"do_center_crop": False}

    def describe(self) -> str:
        return f"{self.width} x {self.height} pixels a frame"

    def _resized(
        self, frames: UInt8[Tensor, "frames 3 height width"]
    ) -> UInt8[Tensor, "frames 3 new_height new_width"]:
        return resize_frames(frames, self.height, self.width, mode=self.resample)

    def _pixels(self, clip: Clip) -> Float[Tensor, "frames 3 height width"]:
        return normalise(self._resized(clip.frames), **self.normalisation)


@dataclass(frozen=True, kw_only=True)
class LlavaOnevisionEncoder(FrameEncoder):
    """LLaVA-OneVision (arXiv:2408.03326): frames are squeezed; `newlines` structural rows follow each video."""

    newlines: int = 0

    @classmethod
    def from_settings(
        cls, config: PretrainedConfig, settings: Settings, max_pixels: int | None
    ) -> "LlavaOnevisionEncoder":
        """Build the encoder from the checkpoint's settings; the vision tower's image size where none are given."""
        vision = config.vision_config
        height, width = box(settings.video.get("size"), vision.image_size)
        check_fixed_size("LLaVA-OneVision", height, width, max_pixels)
        return cls(
            height=height,
            width=width,
            tokens_per_frame=math.ceil(vision.image_size // vision.patch_size / 2) ** 2,
            newlines=1,
            resample=settings.resample(),
            normalisation=settings.normalisation(CLIP_MEAN, CLIP_STD),
        )

    def encode(self, clips: Sequence[Clip]) -> Encoded:
        """Make `pixel_values_videos` [videos frames 3 height width]; InputError unless all have as many frames."""
        self.check_together(clips)
        pixels = torch.stack([self._pixels(clip) for clip in clips])
        runs = [[len(clip.frames) * self.tokens_per_frame + self.newlines] for clip in clips]
        return Encoded({"pixel_values_videos": pixels}, runs)

    def check_together(self, clips: Sequence[Clip]) -> None:
        counts = sorted({len(clip.frames) for clip in clips})
        if len(counts) > 1:
            raise InputError(
                f"clips: LLaVA takes videos of equal frame count in one call, got {counts}; "
                "run them one at a time, or sample longer videos by count"
            )


@dataclass(frozen=True, kw_only=True)
class CroppedEncoder(LlavaOnevisionEncoder):
    """LLaVA-NeXT-Video and Video-LLaVA: the shorter edge is resized, then the centre is cut out."""

    short_edge: int

    required: ClassVar[Mapping[str, Any]] = {"do_center_crop": True}

    @classmethod
    def from_settings(cls, config: PretrainedConfig, settings: Settings, max_pixels: int | None) -> "CroppedEncoder":
        """Build the encoder from the checkpoint's settings; the vision tower's image size where none are given."""
        vision, video = config.vision_config, settings.video
        pooled = config.model_type == "llava_next_video"  # Video-LLaVA pools nothing and keeps each frame's [CLS]
        height, width = box(video.get("crop_size"), vision.image_size)
        check_fixed_size("LLaVA-NeXT-Video" if pooled else "Video-LLaVA", height, width, max_pixels)
        stride = config.spatial_pool_stride if pooled else 1
        tokens = (height // vision.patch_size // stride) * (width // vision.patch_size // stride)
        return cls(
            short_edge=(video.get("size") or {}).get("shortest_edge") or min(height, width),
            height=height,
            width=width,
            tokens_per_frame=tokens if pooled else tokens + 1,
            resample=settings.resample(),
            normalisation=settings.normalisation(CLIP_MEAN, CLIP_STD),
        )

    def describe(self) -> str:
        return f"{super().describe()}, cut from the centre"

    def seen(self, frames: UInt8[Tensor, "frames 3 height width"]) -> UInt8[Tensor, "frames 3 rows columns"]:
        return covered(frames, self.short_edge, self.height, self.width)

    def _resized(
        self, frames: UInt8[Tensor, "frames 3 height width"]
    ) -> UInt8[Tensor, "frames 3 new_height new_width"]:
        height, width = short_edge_size(frames.shape[-2], frames.shape[-1], self.short_edge)
        return centre_crop(resize_frames(frames, height, width, mode=self.resample), self.height, self.width)


@dataclass(frozen=True, kw_only=True)
class InternVLEncoder(FrameEncoder):
    """InternVL: each frame is an image of one tile."""

    @classmethod
    def from_settings(cls, config: PretrainedConfig, settings: Settings, max_pixels: int | None) -> "InternVLEncoder":
        """Build the encoder from the checkpoint's settings; the vision tower's image size where none are given."""
        vision = config.vision_config
        height, width = box(settings.video.get("size"), vision.image_size[0])
        check_fixed_size("InternVL", height, width, max_pixels)
        return cls(
            height=height,
            width=width,
            tokens_per_frame=int(vision.image_size[0] // vision.patch_size[0] * config.downsample_ratio) ** 2,
            resample=settings.resample(),
            normalisation=settings.normalisation(CLIP_MEAN, CLIP_STD),
        )

    def encode(self, clips: Sequence[Clip]) -> Encoded:
        """Make `pixel_values` [frames 3 height width], the frames of all videos in succession."""
        pixels = torch.cat([self._pixels(clip) for clip in clips])
        return Encoded({"pixel_values": pixels}, [[self.tokens_per_frame] * len(clip.frames) for clip in clips])


@dataclass(frozen=True, kw_only=True)
class SmolVLMEncoder(FrameEncoder):
    """SmolVLM2 (arXiv:2504.05299): each frame is an image without tiles, resized by its longer edge, then squeezed.

    size: (height, width) of the first resize; (longer edge, 0) where the shape is kept.
    """

    size: tuple[int, int]

    required: ClassVar[Mapping[str, Any]] = {"do_pad": True}

    @classmethod
    def from_settings(cls, config: PretrainedConfig, settings: Settings, max_pixels: int | None) -> "SmolVLMEncoder":
        """Build the encoder from the checkpoint's settings; the vision tower's image size where none are given."""
        vision, video = config.vision_config, settings.video
        edge = (video.get("max_image_size") or {}).get("longest_edge") or vision.image_size
        check_fixed_size("SmolVLM2", edge, edge, max_pixels)
        size = video.get("size") or (video.get("video_sampling") or {}).get("video_size") or {"longest_edge": 4 * edge}
        longest = size.get("longest_edge")
        return cls(
            height=edge,
            width=edge,
            size=(longest, 0) if longest else box(size, edge),
            tokens_per_frame=(vision.image_size // vision.patch_size // config.scale_factor) ** 2,
            resample=settings.resample(LANCZOS),
            normalisation=settings.normalisation(HALF, HALF),
        )

    def encode(self, clips: Sequence[Clip]) -> Encoded:
        """Make `pixel_values` [videos frames 3 height width], zero after a video's end, and `pixel_attention_mask`."""
        pixels = pad_sequence([self._pixels(clip) for clip in clips], batch_first=True)
        tensors = {
            "pixel_values": pixels,
            "pixel_attention_mask": torch.ones_like(pixels[:, :, 0], dtype=torch.long),
        }
        return Encoded(tensors, [[self.tokens_per_frame] * len(clip.frames) for clip in clips])

    def _resized(
        self, frames: UInt8[Tensor, "frames 3 height width"]
    ) -> UInt8[Tensor, "frames 3 new_height new_width"]:
        height, width = self.size
        if not width:
            height, width = long_edge_size(*frames.shape[-2:], edge=height)
        return super()._resized(resize_frames(frames, height, width, mode=self.resample))


def long_edge_size(height: int, width: int, *, edge: int) -> tuple[int, int]:
    """Compute (height, width), longer edge at `edge` pixels, 4096 at most, the shorter one rounded up to even."""
    edge, ratio = min(4096, edge), width / height
    if width >= height:
        shorter = int(edge / ratio)
        return max(1, shorter + shorter % 2), edge
    shorter = int(edge * ratio)
    return edge, max(1, shorter + shorter % 2)


def box(size: Any, fallback: int) -> tuple[int, int]:
    """Read (height, width) of a `size` setting: a number, height and width, or a shortest edge."""
    if isinstance(size, int):
        return size, size
    size = size or {}
    edge = size.get("shortest_edge") or fallback
    return size.get("height") or edge, size.get("width") or edge
