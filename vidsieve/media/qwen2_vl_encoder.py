"""Clips to the inputs of Qwen2-VL and Qwen2.5-VL."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from transformers import PretrainedConfig

from vidsieve.framework.errors import UsageError
from vidsieve.media.clip import Clip
from vidsieve.media.encoder import Encoded, Encoder
from vidsieve.media.pixels import CLIP_MEAN, CLIP_STD, resize_frames
from vidsieve.media.qwen2_vl import qwen2_vl_patches, smart_resize
from vidsieve.media.settings import Settings

MIN_PIXELS, MAX_PIXELS = 128 * 28 * 28, 768 * 28 * 28  # of transformers' Qwen2VLVideoProcessor
MAX_VIDEO_TOKENS, CONTEXT_SHARE = 128_000, 0.9  # the context that cap_pixels_per_frame shares out


@dataclass(frozen=True)
class Qwen2VLEncoder(Encoder):
    """Frames keep their shape: sides are rounded to merged patches, areas kept within the bounds.

    min_pixels, max_pixels: bounds of one frame.  with_seconds: Qwen2.5-VL's time between temporal patches.
    shared_cap: also share out the model's context over the frames, as qwen-vl-utils does.
    """

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int
    resample: str
    normalisation: dict[str, Any]
    with_seconds: bool
    shared_cap: bool
    max_video_tokens: int

    resolution_is_fixed: ClassVar[bool] = False
    takes_token_types: ClassVar[bool] = True

    @classmethod
    def from_settings(
        cls, model_config: PretrainedConfig, settings: Settings, max_pixels: int | None
    ) -> "Qwen2VLEncoder":
        """From the checkpoint's settings; patch sizes are the model's own where none are given."""
        vision, video = model_config.vision_config, settings.video
        patch_size = video.get("patch_size") or vision.patch_size
        merge_size = video.get("merge_size") or vision.spatial_merge_size
        low, high = pixel_bounds(video, (patch_size * merge_size) ** 2, max_pixels)
        return cls(
            patch_size=patch_size,
            temporal_patch_size=video.get("temporal_patch_size") or vision.temporal_patch_size,
            merge_size=merge_size,
            min_pixels=low,
            max_pixels=high,
            resample=settings.resample,
            normalisation=settings.normalisation(CLIP_MEAN, CLIP_STD),
            with_seconds=model_config.model_type == "qwen2_5_vl",
            shared_cap=bool(video.get("cap_pixels_per_frame")),
            max_video_tokens=video.get("max_video_tokens") or MAX_VIDEO_TOKENS,
        )

    def encode(self, clips: Sequence[Clip]) -> Encoded:
        """`pixel_values_videos` [patches values], `video_grid_thw` and, for 2.5, `second_per_grid_ts`."""
        rows, grids = zip(*(self._patches(clip) for clip in clips), strict=True)
        grid = torch.stack(grids)
        tensors = {"pixel_values_videos": torch.cat(rows), "video_grid_thw": grid}
        if self.with_seconds:
            seconds = [self.temporal_patch_size / clip.sampled_fps for clip in clips]
            tensors["second_per_grid_ts"] = torch.tensor(seconds)
        return Encoded(tensors, (grid.prod(-1) // self.merge_size**2).tolist())

    def describe(self) -> str:
        return f"{self.min_pixels} to {self.max_pixels} pixels a frame"

    def capped(self, max_pixels: int) -> "Qwen2VLEncoder":
        """As if the cap had been asked for when the encoder was built."""
        merged_patch = (self.patch_size * self.merge_size) ** 2
        bounds = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        low, high = pixel_bounds(bounds, merged_patch, max(merged_patch, max_pixels))
        return replace(self, min_pixels=low, max_pixels=high)

    def _patches(self, clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
        count, _, height, width = clip.frames.shape
        new_height, new_width = smart_resize(
            height,
            width,
            factor=self.patch_size * self.merge_size,
            min_pixels=self.min_pixels,
            max_pixels=self._cap(count),
        )
        return qwen2_vl_patches(
            resize_frames(clip.frames, new_height, new_width, mode=self.resample),
            patch_size=self.patch_size,
            temporal_patch_size=self.temporal_patch_size,
            merge_size=self.merge_size,
            **self.normalisation,
        )

    def _cap(self, frame_count: int) -> int:
        """Most pixels of a frame in a clip of `frame_count`."""
        if not self.shared_cap:
            return self.max_pixels
        merged_patch = (self.patch_size * self.merge_size) ** 2
        total = int(self.max_video_tokens * merged_patch * CONTEXT_SHARE)
        share = total * self.temporal_patch_size // frame_count
        return max(min(self.max_pixels, share), int(self.min_pixels * 1.05))


def pixel_bounds(video: Any, merged_patch: int, max_pixels: int | None) -> tuple[int, int]:
    """(least, most) pixels of a frame: the checkpoint's bounds, the upper one capped by the user's.

    Small frames are enlarged to the least, and rounding up may overshoot it; so that a cap holds all the same,
    the least is at most a quarter of it. UsageError for a cap below one merged patch.
    """
    size = video.get("size") or {}
    low = video.get("min_pixels") or size.get("shortest_edge") or MIN_PIXELS
    high = video.get("max_pixels") or size.get("longest_edge") or MAX_PIXELS
    if max_pixels is None:
        return low, high
    if max_pixels < merged_patch:
        raise UsageError(f"max_pixels: a frame has at least {merged_patch} pixels here, got {max_pixels}")
    return min(low, max(merged_patch, max_pixels // 4)), min(high, max_pixels)
