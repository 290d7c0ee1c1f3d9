"""What training does to clips, whatever they show: a stand-in for H.264, and removal of visual tokens.

Real encoding costs more than rendering. What a codec at ordinary quality does to small coloured objects is mostly
this: 4:2:0 chroma, 8-bit limited-range YCbCr, and small frequencies rounded away. The bundled cards measure real H.264.
Tokens go at random or by a pattern, none of which looks at what a token shows.
"""

import functools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

BLOCK = 8


def through_codec(
    frames: UInt8[Tensor, "videos frames 3 height width"], rng: torch.Generator
) -> UInt8[Tensor, "videos frames 3 height width"]:
    """The clips as they might come back from a lossy file; a quality is drawn for each clip."""
    videos, count = frames.shape[:2]
    ycc = torch.einsum("ij,vfjhw->vfihw", _to_ycc(), frames.float())
    step = (2 + 14 * torch.rand(videos, generator=rng)).repeat_interleave(count)[:, None, None, None]
    luma = _quantise(ycc[:, :, :1].flatten(0, 1), step)
    chroma = _quantise(avg_pool2d(ycc[:, :, 1:].flatten(0, 1), 2), step)
    full = interpolate(chroma, scale_factor=2, mode="bilinear")
    decoded = torch.cat([luma, full], dim=1).round().unflatten(0, (videos, count))
    rgb = torch.einsum("ij,vfjhw->vfihw", torch.linalg.inv(_to_ycc()), decoded)
    return rgb.round().clamp(0, 255).to(torch.uint8)


def _to_ycc() -> Float[Tensor, "3 3"]:
    """BT.601, limited range, without the offsets (they cancel)."""
    full = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    return full * torch.tensor([[219 / 255], [224 / 255], [224 / 255]])


def _quantise(
    planes: Float[Tensor, "planes channels height width"], step: Float[Tensor, "planes 1 1 1"]
) -> Float[Tensor, "planes channels height width"]:
    """Round the coefficients of each 8x8 block to multiples of `step`, small ones to zero as encoders do."""
    basis = _dct()
    height, width = planes.shape[-2:]
    blocks = planes.unflatten(-1, (width // BLOCK, BLOCK)).unflatten(-3, (height // BLOCK, BLOCK))
    coefficients = torch.einsum("ij,pcrjsk,lk->pcrisl", basis, blocks, basis)
    scaled = coefficients / step[..., None, None]
    rounded = scaled.sign() * (scaled.abs() + 1 / 3).floor() * step[..., None, None]
    return torch.einsum("ji,pcrjsk,kl->pcrisl", basis, rounded, basis).flatten(-2).flatten(-3, -2)


@functools.cache
def _dct() -> Float[Tensor, "8 8"]:
    """The orthonormal DCT-II matrix."""
    index = torch.arange(BLOCK, dtype=torch.float32)
    basis = torch.cos(math.pi * (2 * index[None, :] + 1) * index[:, None] / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    basis[0] /= math.sqrt(2)
    return basis


def kept_tokens(
    videos: int, groups: int, tokens: int, rng: torch.Generator, *, ratio: float | None = None
) -> Int[Tensor, "videos kept"]:
    """Ascending indices of the visual tokens that stay: one ratio and one pattern for the whole batch.

    A ratio that is left out is drawn between 0.08 and 1.
    """
    if ratio is None:
        ratio = 0.08 + 0.92 * torch.rand(1, generator=rng).item()
    count = max(1, round(ratio * groups * tokens))
    pattern = PATTERNS[int(torch.randint(len(PATTERNS), (1,), generator=rng))]
    score = pattern(videos, groups, tokens, rng)
    return score.flatten(1).topk(count, dim=1).indices.sort(dim=1).values


def _anywhere(videos: int, groups: int, tokens: int, rng: torch.Generator) -> Float[Tensor, "videos groups tokens"]:
    """Every token with the same chance."""
    return torch.rand(videos, groups, tokens, generator=rng)


def _frames(videos: int, groups: int, tokens: int, rng: torch.Generator) -> Float[Tensor, "videos groups tokens"]:
    """Whole frames first."""
    return torch.rand(videos, groups, 1, generator=rng) + 1e-3 * _anywhere(videos, groups, tokens, rng)


def _tubes(videos: int, groups: int, tokens: int, rng: torch.Generator) -> Float[Tensor, "videos groups tokens"]:
    """The same places in all frames."""
    return torch.rand(videos, 1, tokens, generator=rng) + 1e-3 * _anywhere(videos, groups, tokens, rng)


def _anchors(videos: int, groups: int, tokens: int, rng: torch.Generator) -> Float[Tensor, "videos groups tokens"]:
    """Some frames whole, the others thinned at random."""
    anchor = torch.rand(videos, groups, 1, generator=rng) < 0.25
    return _anywhere(videos, groups, tokens, rng) + anchor


PATTERNS: tuple[Callable[[int, int, int, torch.Generator], Float[Tensor, "videos groups tokens"]], ...] = (
    _anywhere,
    _anywhere,
    _frames,
    _tubes,
    _anchors,
)
