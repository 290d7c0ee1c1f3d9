"""From a layer stage's answer to the visual tokens that go on: the core counts, the stage only scores."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidsieve.framework.checks import check_keep, check_merge, check_scores, check_type
from vidsieve.framework.errors import PlanError
from vidsieve.framework.plans import Budget, Keep, Merge, Scores, apportion
from vidsieve.framework.records import LayerTokens


def kept_after(where: str, plan: object, tokens: LayerTokens) -> Bool[Tensor, " visual"]:
    """Which visual tokens of one video go on to the next layer.

    Scores are cut at `tokens.count`, shared over frames by a live Budget (the tokens of a frame compete with one
    another); without a Budget all compete. Ties go to the earlier token. A Merge keeps its targets.

    Raises:
        PlanError: a plan of the wrong kind or content, or Scores where nothing says how many stay.
    """
    check_type(where, "prune_layer", plan)
    alive = torch.ones(tokens.frame.shape, dtype=torch.bool, device=tokens.hidden.device)
    if isinstance(plan, Keep):
        check_keep(where, plan, alive)
        return plan.mask
    if isinstance(plan, Merge):
        check_merge(where, plan, alive[None])
        mask = torch.zeros_like(alive)
        mask[plan.target.long()] = True
        return mask
    assert isinstance(plan, Scores)
    check_scores(where, plan, alive)
    budget = tokens.budget
    if tokens.count is None and (budget is None or budget.counts is None):
        raise PlanError(
            f"{where}: returned Scores, but nothing says how many tokens stay; return a Keep, or declare "
            "the setting that decides in `solves`."
        )
    if budget is None:
        return _best(plan.values, torch.zeros_like(tokens.frame), torch.full_like(tokens.frame[:1], tokens.count or 0))
    line, counts = _lines(budget, tokens)
    return _best(plan.values, line, counts)


def _lines(budget: Budget, tokens: LayerTokens) -> tuple[Int[Tensor, " visual"], Int[Tensor, " lines"]]:
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
    return line, apportion(per_line, tokens.count or 0, offered)


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
