"""Made-up visual tokens for tests: a still background, drift, and a frame unlike the others."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vidsieve.framework.records import VideoTokens


def video_features(frames: int, tokens: int, dim: int, *, seed: int = 0) -> Float[Tensor, "frames tokens dim"]:
    """float32 features that behave as video does: neighbours alike, one frame new."""
    rng = torch.Generator().manual_seed(seed)
    scene = torch.randn(1, tokens, dim, generator=rng)
    features = scene + 0.3 * torch.randn(frames, tokens, dim, generator=rng)
    if frames > 1:
        features[frames // 2] = torch.randn(tokens, dim, generator=rng)
    return features


def video_tokens(frames: int = 6, tokens: int = 9, dim: int = 16, *, seed: int = 0, **fields: Any) -> VideoTokens:
    """A `VideoTokens` record over `video_features`; `fields` replaces any of its fields."""
    side = int(tokens**0.5)
    grid = (frames, side, side) if side * side == tokens else (frames, 1, tokens)
    record = VideoTokens(
        features=video_features(frames, tokens, dim, seed=seed),
        keep=torch.ones(frames, tokens, dtype=torch.bool),
        weight=torch.ones(frames, tokens),
        frame_index=torch.arange(frames),
        rng=torch.Generator().manual_seed(seed),
        token_grid=grid,
        timestamps_s=torch.arange(frames, dtype=torch.float32),
        question=torch.randn(4, dim, generator=torch.Generator().manual_seed(seed + 1)),
    )
    return replace(record, **fields)


def made_signals(names: Collection[str], frames: int, tokens: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Random signals of the shapes that adapters give; `names` may hold other inputs too."""
    rng = torch.Generator().manual_seed(seed + 2)
    change = torch.rand(frames, tokens, generator=rng)
    change[0] = torch.inf
    made = {
        "pixel_difference": change,
        "vision_attention": torch.rand(frames, tokens, generator=rng) / tokens,
        "pre_merger_features": torch.randn(frames, tokens, 12, generator=rng),
    }
    return {name: values for name, values in made.items() if name in names}
