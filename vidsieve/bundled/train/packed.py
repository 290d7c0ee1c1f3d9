"""All questions of a video in one pass: each line of text sees the video and itself, never another line.

The language model's own modules do the arithmetic; only the attention is laid out anew. With one line this is exactly
the causal attention of the prompt `prefix, video, line`.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from vidsieve.bundled.shapes import ModelShape
from vidsieve.bundled.train.configs import Model
from vidsieve.bundled.words import token_ids


@dataclass(frozen=True)
class Frame:
    """The text around the video in one family's chat format."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    newline: bool


def frame_of(model: Model) -> Frame:
    """The prompt's head, and what follows the video before the question."""
    if model.config.model_type == "qwen2_vl":
        return Frame(tuple(token_ids("<|user|> <|vision_start|>")), tuple(token_ids("<|vision_end|>")), False)
    return Frame(tuple(token_ids("<|user|>")), (), True)


@dataclass
class Probe:
    """What a pass gives back besides its result; the layers are asked for by keys, the values come in.

    hidden: output for the video after a layer, [batch, video, dim].  attention: from one place of every line to the
    video, [batch, heads, lines, video].  asked: that place.  looking: from `rows` of the video to the video,
    [batch, heads, rows, video].  earlier: the most that any place before the asked one gives to the line's `evidence`,
    [batch, heads, lines].
    """

    hidden: dict[int, Tensor]
    attention: dict[int, Tensor]
    looking: dict[int, Tensor]
    asked: Int[Tensor, "batch lines"]
    rows: Int[Tensor, "batch rows"]
    evidence: Bool[Tensor, "batch lines video"] | None = None
    earlier: dict[int, Tensor] = field(default_factory=dict)

    def only(self, start: int, stop: int) -> None:
        """Leave out all of the video but the places from `start` to `stop`."""
        self.hidden = {layer: states[:, start:stop] for layer, states in self.hidden.items()}
        self.attention = {layer: weights[..., start:stop] for layer, weights in self.attention.items()}
        self.looking = {layer: weights[..., start:stop] for layer, weights in self.looking.items()}
        self.rows = self.rows - start


def positions(
    model: Model, shape: ModelShape, groups: int, lines: int, length: int, *, after_time: bool = False
) -> tuple[Int[Tensor, "axes video"], Int[Tensor, "axes text"]]:
    """Position ids of prefix and video, and of `lines` texts of `length` ids that each begin right after the video.

    With three axes the text goes on after the picture's longer side, whatever the clip's length (transformers 5), or
    with `after_time` after the longest of the three axes (transformers 4, vLLM).
    """
    frame = frame_of(model)
    head = torch.arange(len(frame.before))
    tokens = groups * shape.places
    if frame.newline:
        end = len(head) + tokens + 1
        return torch.arange(end)[None], (end + torch.arange(length)).repeat(lines)[None]
    cell = torch.arange(shape.cells)
    grid = torch.stack(torch.meshgrid(torch.arange(groups), cell, cell, indexing="ij")).flatten(1) + len(head)
    end = len(head) + (max(shape.cells, groups) if after_time else shape.cells)
    text = (end + torch.arange(length)).repeat(lines)
    return torch.cat([head.expand(3, -1), grid], dim=1), text.expand(3, -1)


def packed_hidden(
    language: Model,
    video: Float[Tensor, "batch video dim"],
    text: Float[Tensor, "batch lines length dim"],
    video_positions: Int[Tensor, "axes batch video"],
    text_positions: Int[Tensor, "axes text"],
    *,
    without: int | None = None,
    probe: Probe | None = None,
) -> Float[Tensor, "batch lines length dim"]:
    """Last hidden states of the text lines. `video` holds the prefix and the visual tokens that are left.

    The layer `without` is left out.
    """
    batch, lines, length, dim = text.shape
    rope_video = _rope(language, video, video_positions)
    flat = text.flatten(1, 2)
    rope_text = _rope(language, flat, text_positions[:, None].expand(-1, batch, -1))
    final = len(language.layers) - 1
    for index, layer in enumerate(language.layers):
        if index == without:
            continue
        normed_text, normed_video = layer.input_layernorm(flat), layer.input_layernorm(video)
        from_video = _keys_values(layer, normed_video, rope_video)
        mixed, seen = _attend_text(
            _queries(layer, normed_text, rope_text), *_keys_values(layer, normed_text, rope_text), *from_video, lines
        )
        flat = _finish(layer, flat, mixed)
        if probe is not None and index in probe.attention:
            place = probe.asked[:, None, :, None, None].expand(-1, seen.shape[1], -1, 1, seen.shape[-1])
            by_line = seen.unflatten(2, (lines, length))
            probe.attention[index] = by_line.gather(3, place).squeeze(3)
            if probe.evidence is not None:
                probe.earlier[index] = _most_before(by_line, probe.evidence, probe.asked)
        if index < final:  # nobody reads the last layer's video rows
            queries = _queries(layer, normed_video, rope_video)
            if probe is not None and index in probe.looking:
                probe.looking[index] = _looking(queries, from_video[0], probe.rows)
            video = _finish(layer, video, scaled_dot_product_attention(queries, *from_video, is_causal=True, scale=1.0))
        if probe is not None and index in probe.hidden:
            probe.hidden[index] = video
    return language.norm(flat).view(batch, lines, length, dim)


def _rope(language: Model, hidden: Tensor, position_ids: Int[Tensor, "axes batch seq"]) -> tuple[Tensor, Tensor]:
    """Cosine and sine [batch, 1, seq, head_dim]; one axis is ordinary RoPE."""
    ids = position_ids if position_ids.shape[0] == 3 else position_ids[0]
    cos, sin = language.rotary_emb(hidden, ids)
    return cos.unsqueeze(1), sin.unsqueeze(1)


def _turn(states: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return states * rope[0] + torch.cat([-second, first], dim=-1) * rope[1]


def _queries(layer: Model, normed: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotated and already scaled, [batch, heads, seq, head_dim]."""
    attention = layer.self_attn
    heads = attention.q_proj(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    return _turn(heads, rope) * attention.head_dim**-0.5


def _keys_values(layer: Model, normed: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Rotated keys, and values, each repeated for its group of query heads."""
    attention = layer.self_attn
    split = (-1, attention.head_dim)
    key = _turn(attention.k_proj(normed).unflatten(-1, split).transpose(1, 2), rope)
    value = attention.v_proj(normed).unflatten(-1, split).transpose(1, 2)
    repeats = attention.num_key_value_groups
    return key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)


def _attend_text(
    query: Tensor, key: Tensor, value: Tensor, key_video: Tensor, value_video: Tensor, lines: int
) -> tuple[Tensor, Tensor]:
    """Each line attends to the whole video and causally to itself, in one softmax; and its weights on the video."""
    seq = query.shape[2]
    length, video = seq // lines, key_video.shape[2]
    own_query, own_key, own_value = (part.unflatten(2, (lines, length)) for part in (query, key, value))
    mask = torch.full((length, length), float("-inf"), dtype=query.dtype).triu(1)
    to_self = (own_query @ own_key.transpose(-1, -2) + mask).flatten(2, 3)
    scores = torch.cat([query @ key_video.transpose(-1, -2), to_self], dim=-1)
    seen, own = torch.softmax(scores, dim=-1).split([video, length], dim=-1)
    mixed = own.unflatten(2, (lines, length)) @ own_value
    return seen @ value_video + mixed.flatten(2, 3), seen


def _most_before(
    seen: Float[Tensor, "batch heads lines length video"],
    evidence: Bool[Tensor, "batch lines video"],
    asked: Int[Tensor, "batch lines"],
) -> Float[Tensor, "batch heads lines"]:
    """The largest share that a place of a line before the asked one gives to the line's evidence."""
    share = (seen @ evidence[:, None, :, :, None].to(seen.dtype)).squeeze(-1)
    before = torch.arange(seen.shape[3]) < asked[:, None, :, None]
    return share.masked_fill(~before, 0.0).amax(-1)


def _looking(query: Tensor, key: Tensor, rows: Int[Tensor, "batch rows"]) -> Tensor:
    """Causal attention weights of some rows, [batch, heads, rows, video]."""
    chosen = query.gather(2, rows[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[-1]))
    later = torch.arange(key.shape[2]) > rows[:, None, :, None]
    return torch.softmax((chosen @ key.transpose(-1, -2)).float().masked_fill(later, float("-inf")), dim=-1)


def _finish(layer: Model, hidden: Tensor, mixed: Tensor) -> Tensor:
    """Output projection and feed-forward, both on the residual stream."""
    hidden = hidden + layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
    normed = layer.post_attention_layernorm(hidden)
    mlp = layer.mlp
    return hidden + mlp.down_proj(silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
