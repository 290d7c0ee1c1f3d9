"""ToMe's bipartite soft matching on projected visual tokens, frame by frame, until enough are merged."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Merge
from vidsieve.framework.records import VideoShape, VideoTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.counting import counts_of_frames, frames_and_total, tokens_to_leave


class ToMeMerge(Stage):
    """Merge each frame's most similar pairs of visual tokens, in rounds, until the count is reached.

    A round takes the living tokens of a frame alternately as A and B, lets each of A choose the most similar of B
    (cosine), and merges the most similar choices, at most half of the tokens. A merged token is the mean of all its
    originals, each counted once; it stands where the one of B stood. Frames share the total as a frame budget says, or
    by their living tokens, and keep one token at least. Ties go to the lower index.

    Source: Token Merging, arXiv 2210.09461, section 3, and its code (github.com/facebookresearch/ToMe at 207459a,
    CC BY-NC 4.0). There it runs inside the encoder, a round a block, on attention keys, and a round leaves the tokens
    in another order; here they stay in theirs.
    """

    reads_if_made = ("budget",)
    solves = "keep_ratio"

    keep_ratio: float | None = tunable(
        None, low=0.01, high=1.0, help="kept ÷ offered; left out, the retention ratio decides"
    )

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        fewest, total, asked = frames_and_total(shape, self.keep_ratio)
        if total == 0:
            return (1.0, 1.0)
        return (fewest / total, 1.0) if asked is None else (max(fewest, asked) / total,) * 2

    @hookimpl
    def merge_tokens(self, tokens: VideoTokens) -> Merge:
        counts = counts_of_frames(tokens, tokens_to_leave(tokens, self.keep_ratio, "tome.merge"))
        into = soft_matching(tokens.features, tokens.weight, tokens.keep, counts)
        first = torch.arange(len(into), device=into.device).unsqueeze(1) * into.shape[1]
        return Merge.assign(torch.where(tokens.keep, into + first, -1))


def soft_matching(
    features: Float[Tensor, "frames tokens dim"],
    weight: Float[Tensor, "frames tokens"],
    alive: Bool[Tensor, "frames tokens"],
    counts: Int[Tensor, " frames"],
) -> Int[Tensor, "frames tokens"]:
    """The place in its frame of the token that each living token ends in, `counts` of them in each frame."""
    mean = torch.where(alive.unsqueeze(-1), features, 0.0).float()
    mass = torch.where(alive, weight, 0.0).float()
    into = torch.arange(alive.shape[1], device=alive.device).expand(alive.shape)
    for _ in range(_rounds(alive.sum(dim=1), counts)):
        step = _one_round(mean, alive, counts)
        moves = torch.nn.functional.one_hot(step, alive.shape[1]).float() * mass.unsqueeze(-1)
        alive = alive & (step == torch.arange(alive.shape[1], device=alive.device))
        mass = moves.sum(dim=1)
        mean = moves.transpose(1, 2) @ mean / mass.unsqueeze(-1).clamp(min=1e-30)
        into = step.gather(1, into)
    return into


def _rounds(offered: Int[Tensor, " frames"], counts: Int[Tensor, " frames"]) -> int:
    """Rounds until the last frame has its count, each at best halving what there is."""
    rounds = 0
    for left, count in torch.stack([offered, counts], dim=1).tolist():
        needed = 0
        while left > max(count, 1):
            left, needed = left - min(left - count, left // 2), needed + 1
        rounds = max(rounds, needed)
    return rounds


def _one_round(
    mean: Float[Tensor, "frames tokens dim"], alive: Bool[Tensor, "frames tokens"], counts: Int[Tensor, " frames"]
) -> Int[Tensor, "frames tokens"]:
    """Where each token goes in this round; itself if it stays."""
    place = torch.arange(alive.shape[1], device=alive.device).expand(alive.shape)
    odd = alive.cumsum(dim=1) % 2 == 0  # of the living, the first is even
    unit = normalize(mean, dim=-1)
    allowed = (alive & ~odd).unsqueeze(2) & (alive & odd).unsqueeze(1)
    best, partner = (unit @ unit.transpose(1, 2)).masked_fill(~allowed, -torch.inf).max(dim=2)
    left = alive.sum(dim=1)
    goes = torch.minimum((left - counts).clamp(min=0), left // 2)
    order = torch.argsort(best, dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, place)
    return torch.where((rank < goes.unsqueeze(1)) & ~best.isinf(), partner, place)


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("tome.merge", ToMeMerge)
