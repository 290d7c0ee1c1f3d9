"""All questions of a video in one pass: each line of text sees the video and itself, never another line.

The language model's own modules do the arithmetic; only the attention is laid out anew. With one line this is exactly
the causal attention of the prompt `prefix, video, line`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers import PreTrainedModel

from vidsieve.bundled.scene import CELLS
from vidsieve.bundled.words import token_ids


@dataclass(frozen=True)
class Frame:
    """The text around the video in one family's chat format."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    newline: bool


def frame_of(model: PreTrainedModel) -> Frame:
    """The prompt's head, and what follows the video before the question."""
    if model.config.model_type == "qwen2_vl":
        return Frame(tuple(token_ids("<|user|> <|vision_start|>")), tuple(token_ids("<|vision_end|>")), False)
    return Frame(tuple(token_ids("<|user|>")), (), True)


def positions(
    model: PreTrainedModel, groups: int, lines: int, length: int
) -> tuple[Int[Tensor, "axes video"], Int[Tensor, "axes text"]]:
    """Position ids of prefix and video, and of `lines` texts of `length` ids that each begin right after the video."""
    frame = frame_of(model)
    head = torch.arange(len(frame.before))
    tokens = groups * CELLS * CELLS
    if frame.newline:
        end = len(head) + tokens + 1
        return torch.arange(end)[None], (end + torch.arange(length)).repeat(lines)[None]
    cell = torch.arange(CELLS)
    grid = torch.stack(torch.meshgrid(torch.arange(groups), cell, cell, indexing="ij")).flatten(1) + len(head)
    # transformers lets the text go on after the picture's longer side, whatever the clip's length.
    end = len(head) + CELLS
    text = (end + torch.arange(length)).repeat(lines)
    return torch.cat([head.expand(3, -1), grid], dim=1), text.expand(3, -1)


def packed_hidden(
    language: torch.nn.Module,
    video: Float[Tensor, "batch video dim"],
    text: Float[Tensor, "batch lines length dim"],
    video_positions: Int[Tensor, "axes batch video"],
    text_positions: Int[Tensor, "axes text"],
) -> Float[Tensor, "batch lines length dim"]:
    """Last hidden states of the text lines. `video` holds the prefix and the visual tokens that are left."""
    batch, lines, length, dim = text.shape
    rope_video = _rope(language, video, video_positions)
    flat = text.flatten(1, 2)
    rope_text = _rope(language, flat, text_positions[:, None].expand(-1, batch, -1))
    final = len(language.layers) - 1
    for index, layer in enumerate(language.layers):
        q_text, k_text, v_text = _project(layer, flat, rope_text)
        q_video, k_video, v_video = _project(layer, video, rope_video, query=index < final)
        flat = _finish(layer, flat, _attend_text(q_text, k_text, v_text, k_video, v_video, lines))
        if q_video is not None:
            video = _finish(layer, video, _attend_video(q_video, k_video, v_video))
    return language.norm(flat).view(batch, lines, length, dim)


def _rope(
    language: torch.nn.Module, hidden: Tensor, position_ids: Int[Tensor, "axes batch seq"]
) -> tuple[Tensor, Tensor]:
    """Cosine and sine [batch, 1, seq, head_dim]; one axis is ordinary RoPE."""
    ids = position_ids if position_ids.shape[0] == 3 else position_ids[0]
    cos, sin = language.rotary_emb(hidden, ids)
    return cos.unsqueeze(1), sin.unsqueeze(1)


def _turn(states: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return states * rope[0] + torch.cat([-second, first], dim=-1) * rope[1]


def _project(
    layer: torch.nn.Module, hidden: Tensor, rope: tuple[Tensor, Tensor], *, query: bool = True
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Rotated queries (scaled) and keys, and values, each [batch, heads, seq, head_dim]; keys repeated for GQA."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    size = attention.head_dim
    shape = (*hidden.shape[:2], -1, size)
    key = _turn(attention.k_proj(normed).view(shape).transpose(1, 2), rope)
    value = attention.v_proj(normed).view(shape).transpose(1, 2)
    repeats = attention.num_key_value_groups
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    if not query:
        return None, key, value
    turned = _turn(attention.q_proj(normed).view(shape).transpose(1, 2), rope)
    return turned * size**-0.5, key, value


def _attend_video(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of the prefix and the visual tokens."""
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0)


def _attend_text(
    query: Tensor, key: Tensor, value: Tensor, key_video: Tensor, value_video: Tensor, lines: int
) -> Tensor:
    """Each line attends to the whole video and causally to itself, in one softmax."""
    batch, heads, seq, size = query.shape
    length, video = seq // lines, key_video.shape[2]
    own_query, own_key, own_value = (part.unflatten(2, (lines, length)) for part in (query, key, value))
    mask = torch.full((length, length), float("-inf"), dtype=query.dtype).triu(1)
    to_self = (own_query @ own_key.transpose(-1, -2) + mask).flatten(2, 3)
    scores = torch.cat([query @ key_video.transpose(-1, -2), to_self], dim=-1)
    seen, own = torch.softmax(scores, dim=-1).split([video, length], dim=-1)
    mixed = own.unflatten(2, (lines, length)) @ own_value
    return seen @ value_video + mixed.flatten(2, 3)


def _finish(layer: torch.nn.Module, hidden: Tensor, mixed: Tensor) -> Tensor:
    """Output projection and feed-forward, both on the residual stream."""
    hidden = hidden + layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
    normed = layer.post_attention_layernorm(hidden)
    mlp = layer.mlp
    return hidden + mlp.down_proj(silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
