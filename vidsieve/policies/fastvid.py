"""FastVID's density merge: salient tokens of every frame, and anchors of a segment that take in the rest."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Merge, apportion
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import tunable
from vidsieve.policies.shared.counting import KeepsRatio, tokens_to_leave
from vidsieve.policies.shared.dpc_knn import distances, peak_strength, strongest


class FastVIDMerge(KeepsRatio):
    """Keep the tokens the vision tower attends to most in each frame, and melt the others into anchors of the segment.

    Of n tokens that stay, `int(n * context_ratio)` are anchors, the others salient: shared over frames by their
    living tokens, in each those with the most vision attention, kept as they are. Without that signal an earlier
    stage's Scores decide, without these the strength as a density peak. In each segment the last frame and every
    `anchor_every`-th before it are anchor frames and share the segment's part; anchors are their strongest density
    peaks among what is not salient. Every other token of the segment joins, in each anchor frame, the anchor it is
    most like (cosine):

        anchor = w anchor + (1 - w) mean of all that joined, itself included       w = max(centre_weight, 1 / (n + 1))

    Anchors join no other anchor. What finds no room in the anchor frames goes to salient tokens, so counts are exact.

    Source: FastVID, arXiv 2503.11187, "Density Spatiotemporal Pruning", and its code (github.com/LunarShen/FastVID at
    d9e6203, MIT), which rounds the counts in each frame and lets anchors of different frames take one another in.
    """

    reads = ("segments",)
    reads_if_made = ("scores",)
    context_ratio: float = tunable(0.4, low=0.0, high=1.0, help="anchors ÷ kept tokens, the paper's d")
    anchor_every: int = tunable(4, low=2, high=8, help="frames from one anchor frame to the next, the paper's p")
    centre_weight: float = tunable(0.6, low=0.0, high=1.0, help="least weight of an anchor itself, the paper's beta")
    neighbours: int = tunable(4, low=1, high=16, help="tokens that tell how dense it is around one, itself included")

    def wants(self) -> frozenset[str]:
        return frozenset({"vision_attention"})

    @hookimpl
    def merge_tokens(self, tokens: VideoTokens) -> Merge:
        assert tokens.segments is not None, "the core refuses a reader before its writer"
        alive, segment = tokens.keep, tokens.segments.labels.long()
        total = tokens_to_leave(tokens, self.keep_ratio, "fastvid.merge")
        counts = shared_out(alive.sum(dim=1), segment, total, int(total * self.context_ratio), self.anchor_every)
        clean = tokens.living_features
        frame = torch.arange(len(alive), device=alive.device).unsqueeze(1).expand(alive.shape)
        group, distance = torch.where(alive, frame, -1), distances(clean)
        salient = strongest(self._salience(tokens, distance, group), group, counts[0])
        others = torch.where(salient, -1, group)
        anchor = strongest(peak_strength(distance, others, self.neighbours)[0], others, counts[1])
        source, target = joined(normalize(clean, dim=-1), others >= 0, anchor, segment)
        return self._weighted(tokens.weight.float().flatten(), salient, source, target)

    def _salience(
        self,
        tokens: VideoTokens,
        distance: Float[Tensor, "frames tokens tokens"],
        group: Int[Tensor, "frames tokens"],
    ) -> Float[Tensor, "frames tokens"]:
        """What ranks the salient tokens of a frame."""
        if "vision_attention" in tokens.signals:
            return torch.where(tokens.keep, tokens.signals["vision_attention"].float(), 0.0)
        if tokens.scores is not None:
            return torch.where(tokens.keep, tokens.scores.values, 0.0)
        return peak_strength(distance, group, self.neighbours)[0]

    def _weighted(
        self,
        weight: Float[Tensor, " all"],
        salient: Bool[Tensor, "frames tokens"],
        source: Int[Tensor, " pairs"],
        target: Int[Tensor, " pairs"],
    ) -> Merge:
        """The merge, with the weights of the formula; a token counts by the originals it stands for."""
        mass = torch.zeros_like(weight).index_add(0, target, weight[source])[target]
        itself = (1 / (mass + 1)).clamp(min=self.centre_weight)
        part = (1 - itself) * weight[source] / mass + torch.where(source == target, itself, 0.0)
        alone = salient.flatten().nonzero().squeeze(1)
        return Merge(
            torch.cat([alone, source]), torch.cat([alone, target]), torch.cat([torch.ones_like(weight[alone]), part])
        )


def shared_out(
    alive: Int[Tensor, " frames"], segment: Int[Tensor, " frames"], total: int, context: int, every: int
) -> tuple[Int[Tensor, " frames"], Int[Tensor, " frames"]]:
    """Salient tokens and anchors of each frame; `total` in all, `context` of them anchors if their frames hold them."""
    salient = apportion(alive.double(), total - context, alive)
    free = alive - salient
    member = torch.nn.functional.one_hot(segment, len(segment)).double()
    living = (alive > 0).double()
    after = (member @ (member.T @ living) - _running(living, member)).long()
    is_anchor = (alive > 0) & (after % every == 0)
    share = member @ ((member.T @ free.double()) / (member.T @ is_anchor.double()).clamp(min=1))
    anchors = apportion(share * is_anchor, context, free * is_anchor)
    rest = free - anchors
    return salient + apportion(rest.double(), context - int(anchors.sum()), rest), anchors


def _running(living: Float[Tensor, " frames"], member: Float[Tensor, "frames segments"]) -> Float[Tensor, " frames"]:
    """Living frames of the own segment up to and with each frame."""
    return ((member * living.unsqueeze(1)).cumsum(dim=0) * member).sum(dim=1)


def joined(
    unit: Float[Tensor, "frames tokens dim"],
    others: Bool[Tensor, "frames tokens"],
    anchor: Bool[Tensor, "frames tokens"],
    segment: Int[Tensor, " frames"],
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Flat pairs: each anchor with itself; each other token with the nearest anchor of every frame of its segment."""
    per_frame = unit.shape[1]
    anchors = anchor.flatten().nonzero().squeeze(1)
    loose = (others & ~anchor).flatten().nonzero().squeeze(1)
    if len(anchors) == 0 or len(loose) == 0:
        return anchors, anchors
    flat = unit.flatten(0, 1)
    frames, column = torch.unique(anchors // per_frame, return_inverse=True)
    place = torch.arange(len(anchors), device=anchors.device) - torch.searchsorted(column, column)
    # a row for each anchor frame, as wide as the fullest; −1 where it has fewer
    table = torch.full((len(frames), int(place.max()) + 1), -1, device=anchors.device)
    table[column, place] = anchors
    similarity = (flat.index_select(0, loose) @ flat.index_select(0, table.clamp(min=0).flatten()).T).view(
        len(loose), *table.shape
    )
    best = similarity.masked_fill_(table < 0, -torch.inf).argmax(dim=2)
    own, row = (segment[loose // per_frame].unsqueeze(1) == segment[frames]).nonzero(as_tuple=True)
    return torch.cat([anchors, loose[own]]), torch.cat([anchors, table[row, best[own, row]]])


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("fastvid.merge", FastVIDMerge)
