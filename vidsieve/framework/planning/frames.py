"""Step 1: which units (frames, or temporal patches) of one video the vision tower must encode."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vidsieve.framework.composition import BoundStage, Composition
from vidsieve.framework.errors import PlanError
from vidsieve.framework.planning.attainable import closing
from vidsieve.framework.planning.checks import call
from vidsieve.framework.planning.pipeline import generator
from vidsieve.framework.plans import KeepFrames, tokens_to_keep
from vidsieve.framework.records import FrameBatch, VideoShape
from vidsieve.framework.stage import Stage


def plan_frames(
    policy: Composition,
    pixels: Float[Tensor, "units frames channels height width"],
    *,
    timestamps_s: Float[Tensor, " units"] | None = None,
    seed: int = 0,
    video_index: int = 0,
) -> Bool[Tensor, " units"]:
    """The units that are left after every `reduce_frames` stage of the policy, in its order; True stays.

    A later stage sees the units an earlier one left. If nothing after step 1 reduces, the last stage here answers for
    the retention ratio and is given `keep_budget`.

    Raises:
        PolicyError: a stage raised, or returned a plan the core refuses.
        RetentionError: the ratio is out of reach for this many units.
    """
    keep = torch.ones(pixels.shape[0], dtype=torch.bool, device=pixels.device)
    for position, bound in enumerate(policy.stages):
        if not bound.runs("reduce_frames"):
            continue
        where = f"policy {policy.name!r}, stage {bound.label!r}, reduce_frames"
        left = keep.nonzero().squeeze(1)
        stage, keep_budget = _turn(where, policy, bound, len(keep), len(left))
        batch = FrameBatch(
            pixels=pixels[left],
            timestamps_s=None if timestamps_s is None else timestamps_s[left],
            keep_budget=keep_budget,
            rng=generator(seed, video_index, position),
        )
        plan = call(where, stage, "reduce_frames", batch)
        assert isinstance(plan, KeepFrames)
        _refuse_other_count(where, policy, plan, keep_budget)
        keep = torch.zeros_like(keep).index_put((left,), plan.mask)
    return keep


def _turn(where: str, policy: Composition, bound: BoundStage, units: int, left: int) -> tuple[Stage, int | None]:
    """The stage with its count solved and its budget, if it answers for the ratio."""
    closes = policy.closer is None and bound is policy.frame_stages[-1]
    if not closes or bound.fixed or policy.retention_ratio is None:
        return bound.stage, None
    budget = min(left, tokens_to_keep(units, policy.retention_ratio))
    shape = VideoShape(left, 1)
    return closing(where, bound.stage, shape, budget), budget


def _refuse_other_count(where: str, policy: Composition, plan: KeepFrames, keep_budget: int | None) -> None:
    """Units are few, so there is no rounding to mend: what was asked must come."""
    if keep_budget is None or not policy.exact:
        return
    kept = int(plan.mask.sum())
    if kept != keep_budget:
        raise PlanError(
            f"{where}: kept {kept} units where keep_budget asks for {keep_budget}. Use frames.keep_budget, or set "
            "`exact: false` in the policy."
        )
