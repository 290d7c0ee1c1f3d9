"""VisionZip: the highest scores stay as they are, and the rest melts into a few tokens spread over it."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Merge
from vidsieve.framework.records import VideoShape, VideoTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.counting import attainable_by_ratio, budget_lines, rank_in_line


class VisionZip(Stage):
    """Keep the dominant visual tokens, those with the highest scores, and melt the others into contextual ones.

        of k tokens that stay, c = int(contextual_share * k) are contextual, k − c dominant
        contextual targets: of the L others every (L // c)-th, from the first on
        every other one joins the target it is most alike

    A contextual token is half its target and half the mean of those that joined it. This is the paper's step on other
    material: there it compares keys of the vision tower and melts its hidden states before the projector, and adds
    target and mean; here projected features are compared and melted, as what comes later reads features of their
    usual length.

    Counts are by frame if a frame budget says so (`uniform-budget` gives the paper's, the same in each), else over
    the whole video; a token joins one of its own budget line. Ties go to the lower index.

    Source: VisionZip, arXiv 2412.04467, and its code (github.com/dvlab-research/VisionZip at ccb20fe).
    """

    reads = ("scores",)
    reads_if_made = ("budget",)
    solves = "keep_ratio"

    keep_ratio: float | None = tunable(
        None,
        low=0.01,
        high=1.0,
        help="left ÷ offered; left out, the retention ratio decides",
    )
    contextual_share: float = tunable(
        10 / 64, low=0.0, high=0.5, help="tokens that others melt into ÷ all that stay, 10 of 64 in the paper"
    )

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        return attainable_by_ratio(shape, self.keep_ratio)

    @hookimpl
    def merge_tokens(self, tokens: VideoTokens) -> Merge:
        assert tokens.scores is not None, "the core refuses a reader before its writer"
        lines, counts = budget_lines(tokens, self.keep_ratio, "visionzip.merge")
        index = tokens.keep.flatten().nonzero().squeeze(1)
        line = lines[index // tokens.keep.shape[1]]
        offered = torch.zeros_like(counts).scatter_add_(0, line, torch.ones_like(line))
        room = torch.minimum(counts, offered)
        # in whole numbers of float64: 0.15625 * 64 must be 10
        contextual = (room.double() * self.contextual_share + 1e-9).long()
        rank = rank_in_line(tokens.scores.values.float().flatten()[index], line, counts.numel())
        dominant = rank < (room - contextual)[line]
        target = _spread(~dominant, line, contextual)
        features = tokens.features.flatten(0, 1)[index].float()
        joins, into = _joined(features, line, target, ~dominant & ~target)
        stays = (dominant | target).nonzero().squeeze(1)
        members = torch.zeros_like(index).scatter_add_(0, into, torch.ones_like(into))
        weight = torch.cat([torch.ones(len(stays), device=index.device), 1 / members[into].float()])
        source, onto = torch.cat([stays, joins]), torch.cat([stays, into])
        return Merge(index[source], index[onto], weight=weight)


def _spread(
    left: Bool[Tensor, " alive"], line: Int[Tensor, " alive"], wanted: Int[Tensor, " lines"]
) -> Bool[Tensor, " alive"]:
    """Evenly spaced ones of those `left`, as many of each line as `wanted`."""
    many = torch.zeros_like(wanted).scatter_add_(0, line, left.long())
    step = many // wanted.clamp(min=1)
    # place among those left of the same line: lines may be interleaved, so count them sorted by line
    order = torch.argsort(line, stable=True)
    running = left[order].long().cumsum(0)
    place = torch.empty_like(running)
    place[order] = running - (many.cumsum(0) - many)[line[order]] - 1
    step = step[line].clamp(min=1)
    return left & (place % step == 0) & (place // step < wanted[line])


def _joined(
    features: Float[Tensor, "alive dim"],
    line: Int[Tensor, " alive"],
    target: Bool[Tensor, " alive"],
    loose: Bool[Tensor, " alive"],
) -> tuple[Int[Tensor, " joining"], Int[Tensor, " joining"]]:
    """The loose tokens of lines that have a target, and the target of their line each is most alike."""
    targets, others = target.nonzero().squeeze(1), loose.nonzero().squeeze(1)
    if not len(targets):
        return others[:0], others[:0]
    unit = normalize(features, dim=-1)
    alike = unit[others] @ unit[targets].T
    alike = alike.masked_fill(line[others, None] != line[targets], -torch.inf)
    value, best = alike.max(dim=1)
    has = value > -torch.inf
    return others[has], targets[best[has]]


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("visionzip.merge", VisionZip)
