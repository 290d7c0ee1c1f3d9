"""Mending rounding on the last reducing stage: at most one token a frame, by score, never a protected one."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidsieve.framework.errors import PlanError
from vidsieve.framework.plans import Keep


def reconcile(
    where: str, plan: Keep, alive: Bool[Tensor, "frames tokens"], token_budget: int
) -> Bool[Tensor, "frames tokens"]:
    """The mask of `plan` with exactly `token_budget` tokens.

    A surplus is taken from the frames whose worst kept token scores lowest, a deficit given to the frames whose best
    dropped token scores highest. Of equal scores the lower index stays, or comes back. Without scores the last kept
    and the first dropped move.

    Raises:
        PlanError: more than one token a frame would have to move.
    """
    kept = int(plan.mask.sum())
    missing = token_budget - kept
    if missing == 0:
        return plan.mask
    if missing > 0:
        movable = alive & ~plan.mask
    else:
        movable = plan.mask if plan.protected is None else plan.mask & ~plan.protected
    frames = movable.any(dim=1)
    moves = abs(missing)
    if moves > int(frames.sum()):
        raise PlanError(
            f"{where}: kept {kept} visual tokens where token_budget asks for {token_budget}; the core mends "
            "rounding of one token a frame, no more. Use tokens.token_budget, or set `exact: false` in the policy."
        )
    value = _order(plan, movable)
    mask = plan.mask.clone()
    if missing > 0:
        token, row = _first_best(value, movable, moves)
        mask[row, token] = True
    else:
        # the same search from the far end: the worst is the best of the negated, and of equals the last goes
        token, row = _first_best(-value.flip(0, 1), movable.flip(0, 1), moves)
        mask[mask.shape[0] - 1 - row, mask.shape[1] - 1 - token] = False
    return mask


def _first_best(
    value: Float[Tensor, "frames tokens"], movable: Bool[Tensor, "frames tokens"], moves: int
) -> tuple[Int[Tensor, " moves"], Int[Tensor, " moves"]]:
    """(token, frame) of the `moves` best movable tokens, one a frame; ties go to the lower index."""
    value = value.masked_fill(~movable, -torch.inf)
    # argmax makes no promise on ties, a stable sort does
    best = torch.argsort(value, dim=1, descending=True, stable=True)[:, 0]
    best_value = value.gather(1, best[:, None]).squeeze(1)
    row = torch.argsort(best_value, descending=True, stable=True)[:moves]
    return best[row], row


def _order(plan: Keep, movable: Bool[Tensor, "frames tokens"]) -> Float[Tensor, "frames tokens"]:
    """What to order by: the plan's scores, or the place in the frame (earlier is better)."""
    if plan.scores is not None:
        return plan.scores.float().clamp(min=-3e38, max=3e38)
    place = torch.arange(movable.shape[1], device=movable.device, dtype=torch.float32)
    return (-place).expand(movable.shape)
