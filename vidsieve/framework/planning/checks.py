"""Call a stage, and the door every plan passes: shape, dtype, device and content, checked always, one read-back a plan.

Each check raises PlanError: *which stage: what was expected, what came, what to do*.
"""

from collections.abc import Sequence
from typing import Any

import pluggy
import torch
from jaxtyping import Bool
from torch import Tensor

from vidsieve.framework.errors import PlanError, StageError, VidsieveError
from vidsieve.framework.hookspecs import PROJECT, STAGE_HOOKS, StageSpecs
from vidsieve.framework.plans import Budget, Keep, KeepFrames, KeepKV, Merge, Scores, Segments
from vidsieve.framework.records import DecodeStep, FrameBatch, PromptKV, VideoTokens
from vidsieve.framework.stage import Stage, cached_on_owner

_ALLOWED: dict[str, tuple[type, ...]] = {
    "reduce_frames": (KeepFrames,),
    "segment_frames": (Segments,),
    "budget_frames": (Budget,),
    "score_tokens": (Scores,),
    "select_tokens": (Keep,),
    "merge_tokens": (Merge, Keep),
    "prune_layer": (Scores, Keep, Merge),
    "evict_kv": (Scores,),
    "prune_kv": (KeepKV,),
}

_ARGUMENTS = {"reduce_frames": "frames", "evict_kv": "entries", "prune_kv": "step"}
"""What a hook calls the record it is shown, where that is not `tokens`."""


def check_type(where: str, hook: str, plan: object) -> None:
    """The plan must be of a kind the hook may return; None gets its own sentence."""
    allowed = _ALLOWED[hook]
    if isinstance(plan, allowed):
        return
    names = " or ".join(kind.__name__ for kind in allowed)
    if plan is None:
        raise PlanError(f"{where}: returned nothing; return {names}. To change nothing, return a plan that says so.")
    raise PlanError(f"{where}: must return {names}, got {type(plan).__name__}.")


def check_tensor(where: str, what: str, value: object, shape: Sequence[int | None], dtype: str, like: Tensor) -> None:
    """`value` must be a tensor of `shape` (None: any size), of kind `dtype`, on the device of `like`."""
    if not isinstance(value, Tensor):
        raise PlanError(f"{where}: {what} must be a tensor, got {type(value).__name__}.")
    fits = value.dim() == len(shape) and all(n is None or n == m for n, m in zip(shape, value.shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise PlanError(f"{where}: {what} must have shape ({wanted}), got {tuple(value.shape)}.")
    kinds = {"bool": (torch.bool,), "float32": (torch.float32,), "int": (torch.int64, torch.int32)}
    wrong = not value.dtype.is_floating_point if dtype == "float" else value.dtype not in kinds[dtype]
    if wrong:
        hint = " Score in float32 whatever the model's dtype: features.float()." if dtype == "float32" else ""
        raise PlanError(f"{where}: {what} must be {dtype}, got {str(value.dtype).removeprefix('torch.')}.{hint}")
    if value.device != like.device:
        raise PlanError(f"{where}: {what} must be on {like.device}, where the tokens are, got {value.device}.")


def _refuse(where: str, faults: Sequence[tuple[Tensor, str]]) -> None:
    """Raise for the first fault whose flag is set; all flags are read back at once."""
    flags = torch.stack([flag.reshape(()) for flag, _ in faults]).tolist()
    for flag, (_, text) in zip(flags, faults, strict=True):
        if flag:
            raise PlanError(f"{where}: {text}")


def check_segments(where: str, plan: Segments, frames: int, like: Tensor) -> None:
    """Labels start at 0 and never fall."""
    check_tensor(where, "Segments.labels", plan.labels, (frames,), "int", like)
    _refuse(
        where,
        [
            (plan.labels[0] != 0, "Segments.labels must start at 0."),
            ((plan.labels.diff() < 0).any(), "Segments.labels must never fall from one frame to the next."),
        ],
    )


def check_budget(where: str, plan: Budget, frames: int, like: Tensor, *, exact: bool) -> None:
    """Exactly one of share and counts; counts only where exact totals are switched off."""
    if (plan.share is None) == (plan.counts is None):
        raise PlanError(
            f"{where}: Budget takes either share or counts, got {'both' if plan.counts is not None else 'none'}."
        )
    if plan.group is not None:
        check_tensor(where, "Budget.group", plan.group, (frames,), "int", like)
    if plan.counts is not None:
        if exact:
            raise PlanError(
                f"{where}: Budget.counts would break the exact total; return a share, or set `exact: false`."
            )
        check_tensor(where, "Budget.counts", plan.counts, (frames,), "int", like)
        _refuse(where, [((plan.counts < 0).any(), "Budget.counts has a negative count.")])
        return
    check_tensor(where, "Budget.share", plan.share, (frames,), "float", like)
    assert plan.share is not None
    bad = ~torch.isfinite(plan.share) | (plan.share < 0)
    _refuse(
        where,
        [(bad.any(), "Budget.share must be finite and not negative, got NaN, infinity or less than 0.")],
    )


def check_scores(where: str, plan: Scores, alive: Bool[Tensor, "*tokens"]) -> None:
    """float32; finite or +inf on living tokens. What dead tokens score does not matter."""
    check_tensor(where, "Scores.values", plan.values, tuple(alive.shape), "float32", alive)
    bad = (torch.isnan(plan.values) | (plan.values == -torch.inf)) & alive
    _refuse(where, [(bad.any(), "Scores.values must be finite or +inf, got NaN or -inf on a living token.")])


def check_keep(where: str, plan: Keep, alive: Bool[Tensor, "*tokens"]) -> None:
    """A subset of the living tokens that is not empty."""
    shape = tuple(alive.shape)
    check_tensor(where, "Keep.mask", plan.mask, shape, "bool", alive)
    faults = [
        (
            (plan.mask & ~alive).any(),
            "Keep.mask keeps a token that an earlier stage dropped; AND it with tokens.keep.",
        ),
        (~plan.mask.any(), "Keep.mask drops every visual token; keep at least one."),
    ]
    if plan.scores is not None:
        check_tensor(where, "Keep.scores", plan.scores, shape, "float", alive)
        faults.append(((torch.isnan(plan.scores) & alive).any(), "Keep.scores has NaN on a living token."))
    if plan.protected is not None:
        check_tensor(where, "Keep.protected", plan.protected, shape, "bool", alive)
        faults.append(((plan.protected & ~plan.mask).any(), "Keep.protected marks a token that Keep.mask drops."))
    _refuse(where, faults)


def check_merge(where: str, plan: Merge, alive: Bool[Tensor, "frames tokens"]) -> None:
    """Pairs within bounds, living tokens only, every target lists itself, no chains, positive weights."""
    total = alive.numel()
    check_tensor(where, "Merge.source", plan.source, (None,), "int", alive)
    check_tensor(where, "Merge.target", plan.target, tuple(plan.source.shape), "int", alive)
    if plan.source.numel() == 0:
        raise PlanError(f"{where}: Merge has no pair, which drops every visual token; keep at least one.")
    both = torch.cat([plan.source, plan.target])
    _refuse(where, [(((both < 0) | (both >= total)).any(), f"Merge indices must be in 0 to {total - 1}.")])
    flat = alive.flatten()
    is_target = torch.zeros(total, dtype=torch.bool, device=alive.device)
    is_target[plan.target] = True
    lists_itself = torch.zeros_like(is_target)
    same = plan.source == plan.target
    lists_itself[plan.source[same]] = True
    faults = [
        (~flat[both].all(), "Merge names a token that an earlier stage dropped."),
        ((is_target & ~lists_itself).any(), "a Merge target must list itself as a source."),
        ((is_target[plan.source] & ~same).any(), "Merge has a chain: a target melts into another target."),
    ]
    faults += _weight_faults(where, plan, alive, is_target)
    faults += _moved_faults(where, plan, alive, is_target)
    _refuse(where, faults)


def _weight_faults(
    where: str, plan: Merge, alive: Bool[Tensor, "frames tokens"], is_target: Bool[Tensor, " all"]
) -> list[tuple[Tensor, str]]:
    """Weights are finite, not negative, and not all zero on a target."""
    if plan.weight is None:
        return []
    check_tensor(where, "Merge.weight", plan.weight, tuple(plan.source.shape), "float", alive)
    mass = torch.zeros(alive.numel(), dtype=torch.float32, device=alive.device)
    mass.index_add_(0, plan.target.long(), plan.weight.float())
    return [
        ((~torch.isfinite(plan.weight) | (plan.weight < 0)).any(), "Merge.weight must be finite and >= 0."),
        ((is_target & (mass <= 0)).any(), "Merge.weight sums to 0 on a target."),
    ]


def _moved_faults(
    where: str, plan: Merge, alive: Bool[Tensor, "frames tokens"], is_target: Bool[Tensor, " all"]
) -> list[tuple[Tensor, str]]:
    """What moves behind the others is a target, and moves once."""
    if plan.behind is None or plan.behind.numel() == 0:
        return []
    check_tensor(where, "Merge.behind", plan.behind, (None,), "int", alive)
    out = (plan.behind < 0) | (plan.behind >= alive.numel())
    named = torch.zeros_like(is_target, dtype=torch.int64)
    named.index_add_(0, plan.behind.long().clamp(0, alive.numel() - 1), torch.ones_like(plan.behind, dtype=torch.int64))
    wrong = out.any() | (~is_target & (named > 0)).any() | (named > 1).any()
    return [(wrong, "Merge.behind must name targets, each once.")]


def check_keep_frames(where: str, plan: KeepFrames, units: int, like: Tensor) -> None:
    """At least one unit stays."""
    check_tensor(where, "KeepFrames.mask", plan.mask, (units,), "bool", like)
    _refuse(where, [(~plan.mask.any(), "KeepFrames.mask drops every unit; keep at least one.")])


def check_keep_kv(where: str, plan: KeepKV, rows: int, like: Tensor) -> None:
    """Shape, dtype and device only: this runs every decode step, so nothing is read back."""
    check_tensor(where, "KeepKV.index", plan.index, (rows, None), "int", like)
    check_tensor(where, "KeepKV.active", plan.active, (rows,), "bool", like)


class _StageManager(pluggy.PluginManager):
    """Looks at the hooks alone: a pydantic model has a hundred other attributes, and reading them all costs 5 ms."""

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        return super().parse_hookimpl_opts(plugin, name) if name in STAGE_HOOKS else None


@cached_on_owner(1)
def callers(stage: Stage) -> dict[str, Any]:
    """One manager per stage object: its hook callers by name. A policy builds them when it is made."""
    manager = _StageManager(PROJECT)
    manager.add_hookspecs(StageSpecs)
    manager.register(stage)
    manager.check_pending()
    return {name: getattr(manager.hook, name) for name in STAGE_HOOKS}


def call(where: str, stage: Stage, hook: str, record: object, *, exact: bool = True) -> Any:
    """The plan `stage` returns from `hook` for `record`, checked; of `prune_layer`'s only the kind.

    Raises:
        PlanError: the plan is refused. With `exact` a Budget may not fix counts.
        StageError: the stage raised; the cause is chained. Our own errors and out-of-memory pass as they are.
    """
    argument = _ARGUMENTS.get(hook, "tokens")
    hook_caller = callers(stage)[hook]
    try:
        plan = hook_caller(**{argument: record})
    except (VidsieveError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        text = f"{where}: raised {type(error).__name__}: {error}. The model is left as it was found."
        raise StageError(text) from error
    check_type(where, hook, plan)
    if isinstance(record, VideoTokens):
        check_plan(where, plan, record.keep, exact=exact)
    elif isinstance(record, FrameBatch):
        check_keep_frames(where, plan, len(record.pixels), record.pixels)
    elif isinstance(record, DecodeStep):
        check_keep_kv(where, plan, len(record.valid), record.attention)
    elif isinstance(record, PromptKV):
        check_tensor(where, "Scores.values", plan.values, record.valid.shape, "float32", record.valid)
    return plan


def check_plan(where: str, plan: Any, alive: Bool[Tensor, "frames tokens"], *, exact: bool = True) -> None:
    """The content of a plan for video tokens, and that what it remembers for the next chunk are tensors."""
    if isinstance(plan, Segments):
        check_segments(where, plan, len(alive), alive)
    elif isinstance(plan, Budget):
        check_budget(where, plan, len(alive), alive, exact=exact)
    elif isinstance(plan, Scores):
        check_scores(where, plan, alive)
    elif isinstance(plan, Keep):
        check_keep(where, plan, alive)
    elif isinstance(plan, Merge):
        check_merge(where, plan, alive)
        if plan.behind is not None:
            raise PlanError(f"{where}: Merge.behind moves tokens, which only prune_layer may; leave it out.")
    state = plan.state
    if state is None:
        return
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise PlanError(f"{where}: state must be a dictionary of tensors, or None, got {type(state).__name__}.")
