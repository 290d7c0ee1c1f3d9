"""Frames made here, with what policies look for: scenes that stand still, cuts, something that moves, noise."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from torch import Tensor

SCENE_FRAMES = 8
NOISE = 2
FPS = 2.0


def sentence(width: int, height: int) -> str:
    """Say what the frames show."""
    return (
        f"synthetic frames of {width} x {height}: a new scene every {SCENE_FRAMES} frames that stands still, one "
        "object that moves, a little noise; they are in memory, so no file is decoded"
    )


def synthetic_frames(
    frames: int, width: int, height: int, *, seed: int = 0
) -> "UInt8[Tensor, 'frames 3 height width']":
    """Draw a video. The same numbers give the same pixels."""
    import torch
    from torch.nn.functional import interpolate

    rng = torch.Generator().manual_seed(seed)
    video = torch.empty(frames, 3, height, width, dtype=torch.uint8)
    side = max(2, min(height, width) // 6)
    for number in range(frames):
        if number % SCENE_FRAMES == 0:
            coarse = torch.rand(1, 3, max(2, height // 28), max(2, width // 28), generator=rng)
            scene = interpolate(coarse, size=(height, width), mode="bilinear")[0] * 235 + 10
            thing = torch.rand(3, side, side, generator=rng) * 235 + 10
            start, step = torch.rand(2, generator=rng), 0.1 * torch.rand(2, generator=rng) + 0.02
        noise = torch.randint(-NOISE, NOISE + 1, (3, height, width), generator=rng)
        frame = scene + noise
        place = (start + step * (number % SCENE_FRAMES)) % 1
        top, left = int(place[0] * (height - side)), int(place[1] * (width - side))
        frame[:, top : top + side, left : left + side] = thing
        video[number] = frame.to(torch.uint8)
    return video
