"""From a layer stage's answer to the visual tokens that go on: the core counts, the stage only scores."""

import torch
from jaxtyping import Bool
from torch import Tensor

from vidsieve.framework.checks import check_keep, check_scores, check_type
from vidsieve.framework.errors import PlanError
from vidsieve.framework.plans import Keep, Merge, Scores, apportion
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
        mask = torch.zeros_like(alive)
        mask[plan.target] = True
        return mask
    assert isinstance(plan, Scores)
    check_scores(where, plan, alive)
    if tokens.count is None:
        raise PlanError(
            f"{where}: returned Scores, but nothing says how many tokens stay; return a Keep, or declare "
            "the setting that decides in `solves`."
        )
    if tokens.budget is None or tokens.budget.share is None:
        return _best(plan.values, tokens.count)
    return _best_by_frame(plan, tokens)


def _best(values: Tensor, count: int) -> Bool[Tensor, " visual"]:
    mask = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
    mask[torch.argsort(values, descending=True, stable=True)[:count]] = True
    return mask


def _best_by_frame(plan: Scores, tokens: LayerTokens) -> Bool[Tensor, " visual"]:
    """The best of each frame, as many as its share of the count."""
    assert tokens.budget is not None and tokens.budget.share is not None and tokens.count is not None
    frames = tokens.budget.share.numel()
    offered = torch.bincount(tokens.frame, minlength=frames)
    counts = apportion(tokens.budget.share, tokens.count, offered)
    order = torch.argsort(plan.values, descending=True, stable=True)
    order = order[torch.argsort(tokens.frame[order], stable=True)]
    first = torch.cumsum(offered, 0) - offered
    rank = torch.arange(order.numel(), device=order.device) - first[tokens.frame[order]]
    mask = torch.zeros(order.shape, dtype=torch.bool, device=order.device)
    mask[order] = rank < counts[tokens.frame[order]]
    return mask
