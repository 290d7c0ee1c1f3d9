"""Frames to model pixels: resize and normalise, in torch alone.

The results equal, bit for bit, those of the torchvision transforms that transformers' processors use
(transformers 5.23, Apache-2.0: `image_processing_backends.TorchvisionBackend`). Two facts make that so:
`interpolate` with `antialias=True` works on uint8 itself on the CPU, and the scaling by 1/255 is folded
into mean and standard deviation *before* they touch the pixels.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torch.nn import functional

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
RESCALE_FACTOR = 1 / 255


def resize_frames(
    frames: UInt8[Tensor, "frames 3 height width"], height: int, width: int, *, mode: str = "bicubic"
) -> UInt8[Tensor, "frames 3 new_height new_width"]:
    """`frames` resized with antialiasing to `height` x `width` pixels; `mode` is bicubic or bilinear."""
    if frames.shape[-2:] == (height, width):
        return frames
    if frames.device.type == "cpu":
        return functional.interpolate(frames, (height, width), mode=mode, antialias=True)
    # The accelerators' kernels know no uint8; bicubic overshoots, hence the clamp.
    resized = functional.interpolate(frames.float(), (height, width), mode=mode, antialias=True)
    return resized.clamp_(0, 255).round_().to(torch.uint8)


def normalise(
    frames: Shaped[Tensor, "*videos frames 3 height width"],
    image_mean: Sequence[float] = CLIP_MEAN,
    image_std: Sequence[float] = CLIP_STD,
    *,
    rescale_factor: float = RESCALE_FACTOR,
) -> Float[Tensor, "*videos frames 3 height width"]:
    """(frames * rescale_factor - mean) / std per channel, float32; pixel values are 0 to 255."""
    mean = torch.tensor(tuple(image_mean), device=frames.device) * (1.0 / rescale_factor)
    std = torch.tensor(tuple(image_std), device=frames.device) * (1.0 / rescale_factor)
    return frames.to(torch.float32).sub(mean[:, None, None]).div_(std[:, None, None])
