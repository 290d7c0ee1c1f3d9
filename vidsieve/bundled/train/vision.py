"""Batched vision towers: the same numbers as transformers' `get_video_features`, for many clips at once.

transformers runs Qwen2-VL's vision attention frame by frame in Python; in training that loop is most of the time.
"""

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate, linear, scaled_dot_product_attention
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

from vidsieve.bundled.train.configs import PATCH, Model

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Both families normalise with the statistics of OpenAI CLIP."""
MERGE = 2


def video_features(
    model: Model, frames: UInt8[Tensor, "videos frames 3 height width"]
) -> Float[Tensor, "videos groups tokens dim"]:
    """Projected visual tokens as the language model receives them, without LLaVA's newline."""
    pixels = normalise(frames)
    if model.config.model_type == "qwen2_vl":
        return _qwen2_vl(model.model.visual, pixels)
    return _llava_onevision(model.model, pixels)


def normalise(frames: UInt8[Tensor, "videos frames 3 height width"]) -> Float[Tensor, "videos frames 3 height width"]:
    """0..255 to zero mean and unit deviation, rescaling and normalising in one step as transformers does."""
    mean = torch.tensor(MEAN).view(3, 1, 1) * 255
    std = torch.tensor(STD).view(3, 1, 1) * 255
    return (frames.float() - mean) / std


def patches(pixels: Float[Tensor, "videos frames 3 height width"]) -> Float[Tensor, "videos groups patches values"]:
    """Qwen2-VL's patch order: merge blocks in raster order, inside a block its four patches."""
    videos, frames, channels, height, width = pixels.shape
    rows, columns = height // PATCH // MERGE, width // PATCH // MERGE
    split = pixels.view(videos, frames // 2, 2, channels, rows, MERGE, PATCH, columns, MERGE, PATCH)
    ordered = split.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
    return ordered.reshape(videos, frames // 2, rows * columns * MERGE**2, channels * 2 * PATCH**2)


def _patch_positions(rows: int, columns: int) -> Tensor:
    """(row, column) of each patch in the order of `patches`, in patches."""
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    blocks = grid.view(2, rows // MERGE, MERGE, columns // MERGE, MERGE).permute(0, 1, 3, 2, 4)
    return blocks.reshape(2, -1)


def _qwen2_vl(
    visual: Model, pixels: Float[Tensor, "videos frames 3 height width"]
) -> Float[Tensor, "videos groups tokens dim"]:
    rows, columns = pixels.shape[-2] // PATCH, pixels.shape[-1] // PATCH
    cut = patches(pixels)
    videos, groups = cut.shape[:2]
    hidden = linear(cut.flatten(0, 1), visual.patch_embed.proj.weight.flatten(1))
    cos, sin = visual.rotary_pos_emb(hidden, _patch_positions(rows, columns).T)
    for block in visual.blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(hidden)).unflatten(-1, (3, attention.num_heads, -1))
        query, key, value = qkv.unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        mixed = scaled_dot_product_attention(query, key, value)
        hidden = hidden + attention.proj(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + block.mlp(block.norm2(hidden))
    return visual.merger(hidden).view(videos, groups, -1, visual.config.hidden_size)


def _llava_onevision(
    core: Model, pixels: Float[Tensor, "videos frames 3 height width"]
) -> Float[Tensor, "videos groups tokens dim"]:
    videos, frames = pixels.shape[:2]
    hidden = core.vision_tower(pixels.flatten(0, 1), output_hidden_states=True).hidden_states[-1]
    projected = core.multi_modal_projector(hidden)
    side = math.isqrt(projected.shape[1])
    grid = projected.transpose(1, 2).unflatten(-1, (side, side))
    pooled = interpolate(grid, size=(math.ceil(side / 2),) * 2, mode="bilinear")
    return pooled.flatten(2).transpose(1, 2).unflatten(0, (videos, frames))
