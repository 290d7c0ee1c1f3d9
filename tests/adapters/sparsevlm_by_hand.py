"""SparseVLM on one prompt, token by token: weights from the model's eager path, loops where the stage has tensors."""

import sys
from typing import Any

import torch
from torch import Tensor

from vidsieve.testing.adapter_decoder_kit import masked, video_columns
from vidsieve.testing.adapter_kit import full_positions


def by_hand(
    model: Any, inputs: dict[str, Any], points: list[tuple[int, int]]
) -> tuple[Tensor, dict[int, tuple[Tensor, Tensor]]]:
    """Columns gone in each layer, and what melted tokens hold; `points` are (after layer, tokens kept) pairs."""
    ids, depth = inputs["input_ids"], model.config.get_text_config().num_hidden_layers
    (columns,) = video_columns(model, inputs)
    gone, melted = torch.zeros(depth, ids.shape[1], dtype=torch.bool), {}
    words = [i for i in range(int(columns[-1]) + 1, ids.shape[1]) if ids[0, i] != model.config.video_token_id]
    raters: list[int] = []
    for after, kept in points:
        _, output = masked(model, inputs, ids, gone, eager=True, melted=melted)
        if not raters:
            start = output.hidden_states[0][0]
            likeness = (start[columns] @ start[words].T).softmax(dim=-1).mean(dim=0)
            raters = [word for word, value in zip(words, likeness, strict=True) if value > likeness.mean()]
        scores = output.attentions[after][0].mean(dim=0)[raters].mean(dim=0)
        alive = [int(c) for c in columns if not gone[after + 1, c]]
        order = sorted(alive, key=lambda column: (-float(scores[column]), column))
        left = order[kept:]
        candidates = left[: int(0.3 * len(left)) + 1]
        # what leaves the layer is what enters the next one
        states = melted_states(output.hidden_states[after + 1][0], melted.get(after + 1))
        groups = clusters(states[candidates], int(len(candidates) / 10) + 1)
        targets = [candidates[centre] for centre in groups]
        means = torch.stack([states[[candidates[i] for i in members]].mean(dim=0) for members in groups.values()])
        gone[after + 1 :, [column for column in left if column not in targets]] = True
        melted[after + 1] = joined(melted.get(after + 1), torch.tensor(targets), means)
    return gone, melted


def plus_by_hand(
    model: Any, inputs: dict[str, Any], points: list[tuple[int, int]], *, heads: int, bounded: bool
) -> Tensor:
    """Columns gone in each layer under SparseVLM+: eager attention ÷ the rotary weight, from so many heads alone."""
    ids, depth = inputs["input_ids"], model.config.get_text_config().num_hidden_layers
    (columns,) = video_columns(model, inputs)
    gone = torch.zeros(depth, ids.shape[1], dtype=torch.bool)
    words = [i for i in range(int(columns[-1]) + 1, ids.shape[1]) if ids[0, i] != model.config.video_token_id]
    weight, raters = rotary_weights(model, full_positions(model, inputs)), []
    if bounded:
        weight = weight.clamp(min=weight.diagonal().mean() / 10)
    for after, kept in points:
        _, output = masked(model, inputs, ids, gone, eager=True)
        if not raters:
            start = output.hidden_states[0][0]
            likeness = (start[columns] @ start[words].T).softmax(dim=-1).mean(dim=0)
            raters = [word for word, value in zip(words, likeness, strict=True) if value > likeness.mean()]
        alive = [int(c) for c in columns if not gone[after + 1, c]]
        each = [(layer / weight)[raters][:, alive] for layer in output.attentions[after][0]]
        each.sort(key=lambda rows: -float(rows.sum()))
        scores = dict(zip(alive, sum(each[:heads]).sum(dim=0).tolist(), strict=True))
        order = sorted(alive, key=lambda column: (-scores[column], column))
        gone[after + 1 :, order[kept:]] = True
    return gone


def rotary_weights(model: Any, positions: Tensor) -> Tensor:
    """The logit of queries and keys of ones at every pair of positions: [columns columns]."""
    lm = model.get_decoder()
    size = lm.layers[0].self_attn.head_dim
    if positions.dim() == 3:  # M-RoPE: the model's own rotation
        module = sys.modules[type(lm.layers[0].self_attn).__module__]
        ones = torch.ones(1, 1, positions.shape[-1], size)
        query, key = module.apply_rotary_pos_emb(ones, ones, *lm.rotary_emb(ones, positions))
        return (query @ key.transpose(2, 3))[0, 0] / size**0.5
    base = model.config.get_text_config().rope_parameters["rope_theta"]
    apart = positions[0][:, None] - positions[0]
    return sum(2 / size**0.5 * torch.cos(apart / base ** (2 * pair / size)) for pair in range(size // 2))


def melted_states(states: Tensor, known: tuple[Tensor, Tensor] | None) -> Tensor:
    """Hidden states at the entry of a layer, when some were melted there before."""
    return states if known is None else states.index_copy(0, *known)


def joined(known: tuple[Tensor, Tensor] | None, columns: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """The later of two meltings at one layer wins."""
    if known is None:
        return columns, states
    old = torch.tensor([int(c) not in columns.tolist() for c in known[0]])
    return torch.cat([known[0][old], columns]), torch.cat([known[1][old], states])


def clusters(points: Tensor, count: int) -> dict[int, list[int]]:
    """Density peaks: the members of each cluster by its centre."""
    places = range(len(points))
    distance = [[float((points[i] - points[j]).norm()) / points.shape[1] ** 0.5 for j in places] for i in places]
    density = [torch.tensor([-sum(d * d for d in sorted(row)[:count]) / count]).exp().item() for row in distance]
    furthest = max(max(row) for row in distance)
    strength = []
    for i in places:
        denser = [distance[i][j] for j in places if density[j] > density[i]]
        strength.append((min(denser) if denser else furthest) * density[i])
    centres = sorted(places, key=lambda i: (-strength[i], i))[:count]
    groups: dict[int, list[int]] = {centre: [centre] for centre in centres}
    for i in places:
        if i not in groups:
            groups[min(centres, key=lambda centre: distance[i][centre])].append(i)
    return groups
