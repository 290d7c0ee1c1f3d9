"""Methods as their papers' code writes them, a Python step a pick, a token or a frame, for `compression_cost`.

Each takes float32 features, how many tokens stay, the question and the vision tower's attention, and gives the flat
indices that stay, ascending; `llava_scissor` its clusters' number. They are plain on purpose, and are not the policies.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from vidsieve.framework.plans import apportion

Features = Float[Tensor, "frames tokens dim"]
Loop = Callable[..., Any]


def divprune(x: Features, count: int, **_: Any) -> list[int]:
    """Max-min diversity, a column of the distance matrix a pick (arXiv 2503.02175)."""
    unit = normalize(x.flatten(0, 1), dim=-1)
    distance = 1 - unit @ unit.T
    picks: list[int] = []
    nearest = distance.clone().fill_diagonal_(math.inf).amin(dim=1)
    for turn in range(count):
        best = int(nearest.argmax())
        picks.append(best)
        nearest = torch.minimum(nearest, distance[best]) if turn else distance[best].clone()
        nearest[picks] = -math.inf
    return sorted(picks)


def cdpruner(x: Features, count: int, question: Tensor, **_: Any) -> list[int]:
    """Greedy MAP inference of a determinantal point process (arXiv 2506.10967), as far as directions go."""
    unit = normalize(x.flatten(0, 1), dim=-1)
    like = unit @ normalize(question, dim=-1).mean(dim=0)
    quality = (like - like.min() + 1e-6) / (like.max() - like.min())
    kernel = quality[:, None] * (unit @ unit.T) * quality
    rows = torch.zeros(count, len(unit))
    left = kernel.diagonal().clone()
    picks: list[int] = []
    for turn in range(count):
        best = int(left.argmax())
        picks.append(best)
        share = left[best].clamp(min=1e-12).sqrt()
        rows[turn] = (kernel[best] - rows[:turn, best] @ rows[:turn]) / share
        left = left - rows[turn].square()
        left[picks] = -math.inf
    return sorted(picks)


def _walk(near: Tensor) -> list[list[int]]:
    """Connected components, point by point."""
    left, groups = set(range(len(near))), []
    rows = [row.nonzero().squeeze(1).tolist() for row in near]
    while left:
        group, border = [], [left.pop()]
        while border:
            point = border.pop()
            group.append(point)
            new = left.intersection(rows[point])
            left -= new
            border += new
        groups.append(group)
    return groups


def llava_scissor(x: Features, count: int, threshold: float = 0.9, **_: Any) -> int:
    """Components of every frame, then of their means (arXiv 2506.21862); how many there are."""
    means = []
    for frame in x:
        unit = normalize(frame, dim=-1)
        means += [frame[group].mean(dim=0) for group in _walk(unit @ unit.T > threshold)]
    direction = normalize(torch.stack(means), dim=-1)
    groups = _walk(direction @ direction.T > threshold)
    stand = normalize(torch.stack([torch.stack([means[i] for i in group]).mean(dim=0) for group in groups]), dim=-1)
    into = (normalize(x.flatten(0, 1), dim=-1) @ stand.T).argmax(dim=1)
    for number in range(len(groups)):
        x.flatten(0, 1)[into == number].sum(dim=0)
    return len(groups)


def dycoke(x: Features, count: int, **_: Any) -> list[int]:
    """Windows of four frames, frame after frame (arXiv 2411.15024)."""
    frames, tokens, _dim = x.shape
    firsts = -(-frames // 4)
    each = (count - firsts * tokens) // (frames - firsts)
    kept = []
    for frame in range(frames):
        if frame % 4 == 0:
            kept += [frame * tokens + token for token in range(tokens)]
            continue
        other = x[frame - (2 if frame % 4 == 2 else 1)]
        order = cosine_similarity(x[frame], other, dim=-1).argsort(stable=True)[: max(0, each)]
        kept += sorted((frame * tokens + order).tolist())
    return kept


def vidcom2(x: Features, count: int, **_: Any) -> list[int]:
    """Shares by how unusual a frame is, then the least usual tokens of each frame (arXiv 2505.14454)."""
    frames, tokens, dim = x.shape
    channels = x.flatten(0, 1).var(dim=0).argsort(stable=True)[: dim // 2].sort().values
    unit = normalize(x[..., channels], dim=-1)
    video = unit.mean(dim=(0, 1))

    def likeness(rows: Tensor, centre: Tensor) -> Tensor:
        distance = (rows - centre).square().sum(dim=-1)
        return sum((torch.exp(-distance / (2 * a)) for a in (0.125, 0.25, 0.5, 1.0, 2.0)), torch.zeros(tokens))

    to_video = [likeness(frame, video) for frame in unit]
    sigma = torch.softmax(torch.stack([-one.mean() for one in to_video]) / 0.01, dim=0)
    counts = apportion((1 + sigma - 1 / frames) / frames, count, [tokens] * frames).tolist()
    kept = []
    for frame in range(frames):
        score = -(to_video[frame] + likeness(unit[frame], unit[frame].mean(dim=0)))
        kept += sorted((frame * tokens + score.argsort(descending=True, stable=True)[: counts[frame]]).tolist())
    return kept


def evs(x: Features, count: int, **_: Any) -> list[int]:
    """The first frame, and the tokens least like the frame before (arXiv 2510.14624)."""
    tokens = x.shape[1]
    unlike = [torch.full((tokens,), math.inf)]
    for before, frame in itertools.pairwise(x):
        unlike.append(1 - cosine_similarity(frame, before, dim=-1))
    return sorted(torch.cat(unlike).argsort(descending=True, stable=True)[:count].tolist())


def tome(x: Features, count: int, **_: Any) -> list[int]:
    """Rounds of bipartite matching, one frame after another (arXiv 2210.09461)."""
    kept = []
    each = count // len(x)
    for number, frame in enumerate(x):
        mean, size, place = frame.clone(), torch.ones(len(frame)), torch.arange(len(frame))
        while len(mean) > each:
            unit = normalize(mean, dim=-1)
            best, into = (unit[::2] @ unit[1::2].T).max(dim=1)
            goes = best.argsort(descending=True, stable=True)[: min(len(mean) - each, len(mean) // 2)].tolist()
            for a in goes:
                b = 2 * int(into[a]) + 1
                total = size[2 * a] + size[b]
                mean[b] = (size[2 * a] * mean[2 * a] + size[b] * mean[b]) / total
                size[b] = total
            stays = [i for i in range(len(mean)) if i % 2 or i // 2 not in set(goes)]
            mean, size, place = mean[stays], size[stays], place[stays]
        kept += (number * len(frame) + place).tolist()
    return kept


def fastervlm(x: Features, count: int, attention: Tensor, **_: Any) -> list[int]:
    """The most attended tokens, frame after frame (arXiv 2412.01818)."""
    frames, tokens, _dim = x.shape
    kept = []
    for frame in range(frames):
        best = attention[frame].argsort(descending=True, stable=True)[: count // frames]
        kept += sorted((frame * tokens + best).tolist())
    return kept


LOOPS: dict[str, Loop] = {
    "cdpruner": cdpruner,
    "divprune": divprune,
    "dycoke": dycoke,
    "evs": evs,
    "fastervlm": fastervlm,
    "llava-scissor-released": llava_scissor,
    "tome": tome,
    "vidcom2": vidcom2,
}
"""By published policy. Methods without one are expressions over tensors in their own code too, or parts of these."""
