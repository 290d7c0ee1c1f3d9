"""Families whose frames keep their shape and are cut into patches: the Qwen-VL, GLM-4V, VideoLLaMA3, Ernie, Gemma 4.

The rules are those of transformers' video processors of the same names (transformers 5.23, Apache-2.0), which
follow qwen-vl-utils, Qwen2-VL (arXiv:2409.12191, section 2.1) and VideoLLaMA3 (arXiv:2501.13106, section 2.3).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional
from transformers import PretrainedConfig

from vidsieve.framework.errors import MediaError
from vidsieve.media.clip import Clip
from vidsieve.media.encoder import Encoded, Encoder, check_cap
from vidsieve.media.pixels import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    grid_patches,
    normalise,
    resize_frames,
    smart_resize,
    write_text,
)
from vidsieve.media.settings import ERNIE_FONT, Settings

SQUARE = 28 * 28  # pixels of a merged patch in most families
MAX_VIDEO_TOKENS, CONTEXT_SHARE = 128_000, 0.9  # the context that Qwen2-VL's cap_pixels_per_frame shares out
STILL = 0.1  # VideoLLaMA3: mean change of a token's normalised pixels times 255, up to which it is left out
SECONDS = {"qwen2_5_vl": "second_per_grid_ts", "qwen2_5_omni_thinker": "video_second_per_grid"}


@dataclass(frozen=True, kw_only=True)
class PatchEncoder(Encoder):
    """Sides are rounded to merged patches, areas are kept within the bounds.

    min_pixels, max_pixels: bounds of one frame, or of whole videos where the family says so.
    frame_cap: the user's most pixels of a frame.
    """

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int
    frame_cap: int | None = None

    @property
    def token_pixels(self) -> int:
        return (self.patch_size * self.merge_size) ** 2

    def encode(self, clips: Sequence[Clip]) -> Encoded:
        """Make `pixel_values_videos` [patches values], `video_grid_thw` [videos 3], and what the family adds."""
        rows, grids = zip(*(self._patches(self._frames(clip)) for clip in clips), strict=True)
        grid = torch.stack(grids)
        tensors = {"pixel_values_videos": torch.cat(rows), "video_grid_thw": grid}
        return Encoded(tensors | self._more(clips, rows, grid), self._runs(rows, grid), self.temporal_patch_size)

    def describe(self) -> str:
        low, high = self._frame_bounds(self.min_pixels, self.max_pixels)
        return f"{low} to {high} pixels a frame"

    def capped(self, max_pixels: int) -> "PatchEncoder":
        cap = max(self.token_pixels, max_pixels)
        return replace(self, frame_cap=cap if self.frame_cap is None else min(cap, self.frame_cap))

    def _frames(self, clip: Clip) -> UInt8[Tensor, "frames 3 height width"]:
        return clip.frames

    def _patches(
        self, frames: UInt8[Tensor, "frames 3 height width"]
    ) -> tuple[Float[Tensor, "patches values"], Int[Tensor, " 3"]]:
        count, _, height, width = frames.shape
        return grid_patches(
            resize_frames(frames, *self._size(count, height, width), mode=self.resample),
            patch_size=self.patch_size,
            temporal_patch_size=self.temporal_patch_size,
            merge_size=self.merge_size,
            **self.normalisation,
        )

    def _size(self, count: int, height: int, width: int) -> tuple[int, int]:
        """Compute (height, width) of the frames of a clip of `count`."""
        low, high = self._frame_bounds(self.min_pixels, self.max_pixels)
        factor = self.patch_size * self.merge_size
        return smart_resize(height, width, factor=factor, min_pixels=low, max_pixels=high)

    def _frame_bounds(self, low: int, high: int) -> tuple[int, int]:
        """Compute (least, most) pixels of a frame under the user's cap.

        Small frames are enlarged to the least, and rounding up may overshoot it; so that a cap holds all the same,
        the least is at most a quarter of it.
        """
        if self.frame_cap is None:
            return low, high
        return min(low, max(self.token_pixels, self.frame_cap // 4)), min(high, self.frame_cap)

    def _more(self, clips: Sequence[Clip], rows: Sequence[Tensor], grid: Int[Tensor, "videos 3"]) -> dict[str, Tensor]:
        return {}

    def _runs(self, rows: Sequence[Tensor], grid: Int[Tensor, "videos 3"]) -> list[list[int]]:
        """Count one run a video."""
        return [[tokens] for tokens in (grid.prod(-1) // self.merge_size**2).tolist()]

    @classmethod
    def _common(cls, config: PretrainedConfig, settings: Settings, max_pixels: int | None) -> dict[str, Any]:
        """Collect patch sizes, the model's own where none are given, and the user's cap.

        Raises:
            UsageError: a cap below one merged patch.
        """
        vision, video = config.vision_config, settings.video
        patch_size = video.get("patch_size") or vision.patch_size
        merge_size = video.get("merge_size") or getattr(vision, "spatial_merge_size", 2)
        check_cap(max_pixels, (patch_size * merge_size) ** 2)
        return {
            "patch_size": patch_size,
            "merge_size": merge_size,
            "temporal_patch_size": video.get("temporal_patch_size") or getattr(vision, "temporal_patch_size", 1),
            "frame_cap": max_pixels,
            "resample": settings.resample(),
        }


@dataclass(frozen=True, kw_only=True)
class Qwen2VLEncoder(PatchEncoder):
    """Qwen2-VL, Qwen2.5-VL and Qwen2.5-Omni.

    seconds: the name by which the model takes the time between temporal patches.
    shared_cap: also share out the model's context over the frames, as qwen-vl-utils does.
    """

    seconds: str | None
    shared_cap: bool
    max_video_tokens: int

    @classmethod
    def from_settings(cls, config: PretrainedConfig, settings: Settings, max_pixels: int | None) -> "Qwen2VLEncoder":
        """Build the encoder from the checkpoint's settings. Omni's processor has its own bounds, whatever they say."""
        bounds = (128 * SQUARE, 768 * SQUARE)
        if config.model_type != "qwen2_5_omni_thinker":
            bounds = settings.pixel_bounds(*bounds, by_name=True)
        return cls(
            **cls._common(config, settings, max_pixels),
            min_pixels=bounds[0],
            max_pixels=bounds[1],
            normalisation=settings.normalisation(CLIP_MEAN, CLIP_STD),
            seconds=SECONDS.get(config.model_type),
            shared_cap=bool(settings.video.get("cap_pixels_per_frame")),
            max_video_tokens=settings.video.get("max_video_tokens") or MAX_VIDEO_TOKENS,
        )

    def _size(self, count: int, height: int, width: int) -> tuple[int, int]:
        low, high = self._frame_bounds(self.min_pixels, self.max_pixels)
        if self.shared_cap:
            total = int(self.max_video_tokens * self.token_pixels * CONTEXT_SHARE)
            high = max(min(high, total * self.temporal_patch_size // count), int(low * 1.05))
        factor = self.patch_size * self.merge_size
        return smart_resize(height, width, factor=factor, min_pixels=low, max_pixels=high)

    def _more(self, clips: Sequence[Clip], rows: Sequence[Tensor], grid: Int[Tensor, "videos 3"]) -> dict[str, Tensor]:
        if self.seconds is None:
            return {}
        return {self.seconds: torch.tensor([self.temporal_patch_size / clip.sampled_fps for clip in clips])}


@dataclass(frozen=True, kw_only=True)
class TimedPatchEncoder(PatchEncoder):
    """Qwen3-VL, Qwen3.5 and GLM-4V: the bounds are a whole video's; each temporal patch has text around it.

    frame_tokens: most tokens of a frame, which then also shares the most pixels with the others; None for no such cap.
    """

    frame_tokens: int | None

    @classmethod
    def from_settings(cls, config: PretrainedConfig, settings: Settings, max_pixels: int | None) -> "TimedPatchEncoder":
        """Build the encoder from the checkpoint's settings."""
        is_glm = config.model_type.startswith("glm4v")
        bounds = (16 * SQUARE, 60_000 * SQUARE) if is_glm else (128 * 32 * 32, 768 * 32 * 32)
        low, high = settings.pixel_bounds(*bounds)
        capped = not is_glm and settings.video.get("cap_pixels_per_frame")
        return cls(
            **cls._common(config, settings, max_pixels),
            min_pixels=low,
            max_pixels=high,
            normalisation=settings.normalisation(*((CLIP_MEAN, CLIP_STD) if is_glm else (HALF, HALF))),
            frame_tokens=(settings.video.get("max_video_tokens") or 768) if capped else None,
        )

    def describe(self) -> str:
        cap = "" if self.frame_cap is None else f", at most {self.frame_cap} a frame"
        return f"{self.min_pixels} to {self.max_pixels} pixels a video{cap}"

    def _size(self, count: int, height: int, width: int) -> tuple[int, int]:
        low, high = self.min_pixels, self.max_pixels
        if self.frame_tokens is not None:
            high = count * max(min(self.frame_tokens * self.token_pixels, high // count), int(low * 1.05))
        if self.frame_cap is not None:
            least, most = self._frame_bounds(low, high)
            low, high = min(low, least * count), min(high, most * count)
            # a video of an odd count is measured by whole temporal patches, which may be fewer frames than it has
            high = min(high, most * max(1, round(count / self.temporal_patch_size)) * self.temporal_patch_size)
        return smart_resize(
            height,
            width,
            factor=self.patch_size * self.merge_size,
            min_pixels=low,
            max_pixels=high,
            frames=count,
            temporal_patch_size=self.temporal_patch_size,
        )

    def _runs(self, rows: Sequence[Tensor], grid: Int[Tensor, "videos 3"]) -> list[list[int]]:
        """Count one run a temporal patch."""
        return [[height * width // self.merge_size**2] * time for time, height, width in grid.tolist()]


@dataclass(frozen=True, kw_only=True)
class VideoLlama3Encoder(PatchEncoder):
    """Frames share out the most pixels; tokens that hardly change from frame to frame have no placeholder.

    compress: whether still tokens are left out.
    """

    compress: bool

    @classmethod
    def from_settings(
        cls, config: PretrainedConfig, settings: Settings, max_pixels: int | None
    ) -> "VideoLlama3Encoder":
        """Build the encoder from the checkpoint's settings."""
        low, high = settings.pixel_bounds(128 * SQUARE, 768 * SQUARE, by_name=True)
        return cls(
            **cls._common(config, settings, max_pixels),
            min_pixels=low,
            max_pixels=high,
            normalisation=settings.normalisation(HALF, HALF),
            compress=settings.video.get("use_token_compression") is not False,
        )

    def describe(self) -> str:
        cap = "" if self.frame_cap is None else f", at most {self.frame_cap} a frame"
        return f"up to {self.max_pixels} pixels a video{cap}"

    def _size(self, count: int, height: int, width: int) -> tuple[int, int]:
        low, high = self._frame_bounds(self.min_pixels, self.max_pixels // count)
        factor = self.patch_size * self.merge_size
        return smart_resize(height, width, factor=factor, min_pixels=low, max_pixels=high)

    def _more(self, clips: Sequence[Clip], rows: Sequence[Tensor], grid: Int[Tensor, "videos 3"]) -> dict[str, Tensor]:
        masks = self._masks(rows, grid)
        return {
            "video_merge_sizes": torch.full((len(grid),), self.merge_size),
            "video_compression_mask": torch.cat([mask.flatten() for mask in masks]),
        }

    def _runs(self, rows: Sequence[Tensor], grid: Int[Tensor, "videos 3"]) -> list[list[int]]:
        """Count one run a frame."""
        return [mask.sum(dim=1).tolist() for mask in self._masks(rows, grid)]

    def _masks(self, rows: Sequence[Tensor], grid: Int[Tensor, "videos 3"]) -> list[Bool[Tensor, "frames tokens"]]:
        """Decide for each video which of its tokens have a placeholder."""
        masks = []
        for video, (time, height, width) in zip(rows, grid.tolist(), strict=True):
            tokens = video.view(time, (height // self.merge_size) * (width // self.merge_size), -1)
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
            if self.compress and time > 1:
                mask[1:] = (tokens[1:] - tokens[:-1]).abs().mean(dim=-1) * 255 > STILL
                mask[:, 0] |= ~mask.any(dim=1)
            masks.append(mask)
        return masks


@dataclass(frozen=True, kw_only=True)
class ErnieEncoder(PatchEncoder):
    """Ernie-4.5-VL: the time is written on each frame; the grid counts frames, of which the model merges two into one.

    font: the file of the font, or None where nothing is written.
    """

    font: Path | None

    @classmethod
    def from_settings(cls, config: PretrainedConfig, settings: Settings, max_pixels: int | None) -> "ErnieEncoder":
        """Build the encoder from the checkpoint's settings.

        Raises:
            MediaError: the checkpoint has no font to write times with.
        """
        low, high = settings.pixel_bounds(299 * SQUARE, 1196 * SQUARE)
        writes = settings.video.get("draw_on_frames") is not False
        if writes and settings.font is None:
            raise MediaError(
                f"Ernie-4.5-VL: writes the time on each frame, but the checkpoint has no font file "
                f"{settings.video.get('font') or ERNIE_FONT!r}; put it there, or set draw_on_frames to false"
            )
        return cls(
            **cls._common(config, settings, max_pixels) | {"temporal_patch_size": 1},
            min_pixels=low,
            max_pixels=high,
            normalisation=settings.normalisation(CLIP_MEAN, CLIP_STD),
            font=settings.font if writes else None,
        )

    def _frames(self, clip: Clip) -> UInt8[Tensor, "frames 3 height width"]:
        frames = clip.frames
        if self.font is not None:
            times = [
                f"time: {int(s // 3600):02d}:{int(s % 3600 // 60):02d}:{s % 60:05.02f}" for s in clip.counted_seconds
            ]
            frames = torch.stack([write_text(f, t, self.font) for f, t in zip(frames, times, strict=True)])
        return torch.cat([frames, frames[-1:]]) if len(frames) % 2 else frames

    def _runs(self, rows: Sequence[Tensor], grid: Int[Tensor, "videos 3"]) -> list[list[int]]:
        return [[tokens] for tokens in (grid.prod(-1) // self.merge_size**2 // 2).tolist()]


@dataclass(frozen=True, kw_only=True)
class Gemma4Encoder(Encoder):
    """Gemma 4: frames fill a budget of patches as well as their shape allows, and are filled up to it with nothing.

    kernel: patches along the edge of a visual token.  max_tokens: most visual tokens of a frame.
    """

    patch_size: int
    kernel: int
    max_tokens: int

    @classmethod
    def from_settings(cls, config: PretrainedConfig, settings: Settings, max_pixels: int | None) -> "Gemma4Encoder":
        """Build the encoder from the checkpoint's settings; patch sizes are the model's own where none are given."""
        vision, video = config.vision_config, settings.video
        encoder = cls(
            patch_size=video.get("patch_size") or vision.patch_size,
            kernel=video.get("pooling_kernel_size") or vision.pooling_kernel_size,
            max_tokens=video.get("max_soft_tokens") or 70,
            resample=settings.resample(),
            normalisation=settings.normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        )
        check_cap(max_pixels, encoder.token_pixels)
        return encoder if max_pixels is None else encoder.capped(max_pixels)

    @property
    def token_pixels(self) -> int:
        return (self.patch_size * self.kernel) ** 2

    def encode(self, clips: Sequence[Clip]) -> Encoded:
        """Make `pixel_values_videos` [frames patches values], `video_position_ids` [frames patches 2] with −1 where
        filled up, `num_frames_per_video` [videos]; the frames of all videos in succession."""
        most = self.max_tokens * self.kernel**2
        pixels, places, runs = [], [], []
        for clip in clips:
            rows, where = self._patches(clip.frames)
            runs.append([rows.shape[1] // self.kernel**2] * len(rows))
            filling = most - rows.shape[1]
            pixels.append(functional.pad(rows, (0, 0, 0, filling)))
            places.append(functional.pad(where, (0, 0, 0, filling), value=-1).expand(len(rows), -1, -1))
        tensors = {
            "pixel_values_videos": torch.cat(pixels),
            "video_position_ids": torch.cat(places),
            "num_frames_per_video": torch.tensor([len(clip.frames) for clip in clips]),
        }
        return Encoded(tensors, runs)

    def describe(self) -> str:
        return f"{self.max_tokens} visual tokens a frame of {self.token_pixels} pixels each"

    def capped(self, max_pixels: int) -> "Gemma4Encoder":
        return replace(self, max_tokens=max(1, min(self.max_tokens, max_pixels // self.token_pixels)))

    def _patches(
        self, frames: UInt8[Tensor, "frames 3 height width"]
    ) -> tuple[Float[Tensor, "frames patches values"], Int[Tensor, "patches 2"]]:
        """Cut each frame into patches row by row, with the (column, row) of each."""
        height, width = self._size(*frames.shape[-2:])
        pixels = normalise(resize_frames(frames, height, width, mode=self.resample), **self.normalisation)
        side, rows, columns = self.patch_size, height // self.patch_size, width // self.patch_size
        cut = pixels.unflatten(3, (columns, side)).unflatten(2, (rows, side))
        patches = cut.permute(0, 2, 4, 3, 5, 1).reshape(len(frames), rows * columns, -1)
        where = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(-1, 2).flip(1)
        return patches, where

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Return the largest (height, width) in pixels within the budget: whole tokens, aspect ratio nearly kept."""
        step = self.patch_size * self.kernel
        scale = math.sqrt(self.max_tokens * self.token_pixels / (height * width))
        rows, columns = math.floor(scale * height / step), math.floor(scale * width / step)
        if not rows:
            columns = min(width // height, self.max_tokens)
        elif not columns:
            rows = min(height // width, self.max_tokens)
        return max(1, rows) * step, max(1, columns) * step
