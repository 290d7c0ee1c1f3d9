"""From a layer stage's answer to the visual tokens that go on: the core counts, the stage only scores."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidsieve.framework.errors import PlanError
from vidsieve.framework.planning.checks import check_keep, check_merge, check_scores
from vidsieve.framework.plans import Budget, Keep, Merge, MergeStep, Scores, apportion, melt
from vidsieve.framework.records import LayerTokens


@dataclass(frozen=True, eq=False)
class LayerCut:
    """What goes on of one video after a prune point.

    `index` numbers the tokens among those offered, in their new order; the last `moved` of them come behind the
    video's last place. `weight` counts the originals of each, `merge` is what to do to hidden states first.
    """

    index: Int[Tensor, " kept"]
    weight: Float[Tensor, " kept"]
    moved: int = 0
    merge: MergeStep | None = None


def cut_of(where: str, plan: object, tokens: LayerTokens) -> LayerCut:
    """What a stage's answer leaves of one video.

    Scores are cut at `tokens.count`, shared over frames by a live Budget (the tokens of a frame compete with one
    another); without a Budget all compete. Ties go to the earlier token. A Merge keeps its targets.

    Raises:
        PlanError: a plan of the wrong content, or Scores where nothing says how many stay.
    """
    alive = torch.ones_like(tokens.weight, dtype=torch.bool)
    if isinstance(plan, Merge):
        check_merge(where, plan, alive[None])
        return _melted(plan, tokens)
    if isinstance(plan, Keep):
        check_keep(where, plan, alive)
        mask = plan.mask
    else:
        assert isinstance(plan, Scores)
        check_scores(where, plan, alive)
        if tokens.count is None and (tokens.budget is None or tokens.budget.counts is None):
            raise PlanError(
                f"{where}: returned Scores, but nothing says how many tokens stay; return a Keep, or declare "
                "the setting that decides in `solves`."
            )
        mask = best(plan.values, tokens, tokens.count or 0)
    index = mask.nonzero().squeeze(1)
    return LayerCut(index, tokens.weight[index])


def best(values: Float[Tensor, " visual"], tokens: LayerTokens, count: int) -> Bool[Tensor, " visual"]:
    """The `count` tokens with the highest values, shared over frames by a live Budget; ties to the earlier."""
    if tokens.budget is not None:
        return _best(values, *_lines(tokens.budget, tokens, count))
    order = torch.argsort(values, descending=True, stable=True)
    return torch.zeros_like(values, dtype=torch.bool).index_fill_(0, order[:count], True)


def _melted(plan: Merge, tokens: LayerTokens) -> LayerCut:
    """The targets in order of appearance, those that move behind the others last."""
    step, weight = melt(plan, tokens.weight)
    moved = torch.zeros(0, dtype=torch.int64, device=weight.device) if plan.behind is None else plan.behind.long()
    stays = step.targets.index_fill(0, moved, False)
    index = torch.cat([stays.nonzero().squeeze(1), moved])
    return LayerCut(index, weight[index], moved.numel(), step)


def _lines(budget: Budget, tokens: LayerTokens, count: int) -> tuple[Int[Tensor, " visual"], Int[Tensor, " lines"]]:
    """The budget line each token draws on (its frame's, or its frame's group's), and how many each line keeps."""
    given = budget.share if budget.counts is None else budget.counts
    assert given is not None, "a Budget has shares or counts"
    line_of_frame = torch.arange(given.numel(), device=given.device)
    if budget.group is not None:
        line_of_frame = torch.unique(budget.group, return_inverse=True)[1]
    per_line = torch.zeros_like(given).scatter_add_(0, line_of_frame, given)
    line = line_of_frame[tokens.frame]
    if budget.counts is not None:
        return line, per_line
    offered = torch.zeros_like(line_of_frame).scatter_add_(0, line, torch.ones_like(line))
    return line, apportion(per_line, count, offered)


def _best(
    values: Float[Tensor, " visual"], line: Int[Tensor, " visual"], counts: Int[Tensor, " lines"]
) -> Bool[Tensor, " visual"]:
    """The best of each line, as many as it keeps."""
    order = torch.argsort(values, descending=True, stable=True)
    order = order[torch.argsort(line[order], stable=True)]
    offered = torch.zeros_like(counts).scatter_add_(0, line, torch.ones_like(line))
    first = torch.cumsum(offered, 0) - offered
    rank = torch.arange(order.numel(), device=order.device) - first[line[order]]
    mask = torch.zeros(order.shape, dtype=torch.bool, device=order.device)
    mask[order] = rank < counts[line[order]]
    return mask
