"""Which ratios a policy can reach, and the setting that reaches the one asked for."""

from collections.abc import Sequence
from functools import lru_cache
from typing import get_args

from vidsieve.framework.errors import RetentionError
from vidsieve.framework.hookspecs import REDUCING_HOOKS
from vidsieve.framework.plans import tokens_to_keep
from vidsieve.framework.policy import BoundStage, Policy
from vidsieve.framework.records import VideoShape
from vidsieve.framework.stage import Stage


# asked for every video of every request, and nearly always about the same few shapes
@lru_cache(maxsize=512)
def attainable(policy: Policy, shape: VideoShape) -> tuple[float, float]:
    """Lowest and highest retention ratio of `policy` on this shape: the product over its reducing stages.

    A layer stage counts by the mean over decoder layers of the visual tokens entering each.
    """
    low = high = 1.0
    for bound in policy.stages:
        if not bound.runs("reduce_frames", *REDUCING_HOOKS):
            continue
        stage_low, stage_high = bound.stage.attainable(shape)
        if bound.runs("prune_layer"):
            stage_low, stage_high = (_over_layers(bound.stage, shape, end) for end in (stage_low, stage_high))
        low, high = low * stage_low, high * stage_high
    return low, high


def _over_layers(stage: Stage, shape: VideoShape, share: float) -> float:
    """Mean over layers of what enters them when `share` is left after the stage's first prune point."""
    first = min(stage.layers(shape.layers), default=shape.layers - 1)
    before = min(first + 1, shape.layers)
    return (before + share * (shape.layers - before)) / shape.layers


def check_attainable(policy: Policy, shape: VideoShape) -> None:
    """Refuse a ratio the policy cannot reach on this shape.

    Raises:
        RetentionError: with the attainable range.
    """
    ratio, closer = policy.retention_ratio, policy.closer
    if ratio is None or closer is None or shape.total == 0:
        return
    low, high = attainable(policy, shape)
    wanted = tokens_to_keep(shape.total, ratio)
    # a fixed setting may differ from the ratio by the rounding of one token per frame
    slack = shape.frames if closer.fixed else 0.5
    below = wanted < low * shape.total - slack
    above = closer.fixed and wanted > high * shape.total + slack
    if not below and not above:
        return
    reach = f"{low:.4g} to {high:.4g}" if high - low > 1e-9 else f"{low:.4g} only"
    setting = f"; {closer.label}.{closer.stage.solves} is fixed, leave it out to have it solved" if closer.fixed else ""
    raise RetentionError(
        f"policy {policy.name!r}: retention ratio {ratio:g} asked, but on {shape.frames} frames of {shape.tokens} "
        f"visual tokens it reaches {reach}{setting}. Ask for a ratio in that range or use another policy."
    )


@lru_cache(maxsize=512)
def _reach(stage: Stage, shape: VideoShape) -> tuple[float, float]:
    return stage.attainable(shape)


def check_reach(where: str, stage: Stage, shape: VideoShape, token_budget: int) -> None:
    """Refuse a budget the closer cannot meet on the tokens that reached it.

    Raises:
        RetentionError: with the range of counts it can leave.
    """
    low, high = _reach(stage, shape)
    if low * shape.total - 0.5 <= token_budget <= high * shape.total + 0.5:
        return
    raise RetentionError(
        f"{where}: token_budget {token_budget} asked, but of the {shape.total} visual tokens that reach it, it leaves "
        f"{round(low * shape.total)} to {round(high * shape.total)}. Ask for a ratio within that or change the policy."
    )


def layer_count(where: str, ratio: float, entered: Sequence[int], alive: int, baseline: int, layers: int) -> int:
    """How many of `alive` visual tokens may go on, so that the mean over layers of what enters each is the ratio.

    `entered` says how many visual tokens entered each layer up to the prune point, `baseline` how many the
    uncompressed model has, `layers` how deep it is. Rounded down to whole tokens; never more than are alive.

    Raises:
        RetentionError: the layers before the prune point alone are above the ratio, or no layer comes after it.
    """
    after = layers - len(entered)
    if after <= 0:
        raise RetentionError(f"{where}: prunes after layer {len(entered) - 1} of {layers}, where no layer comes after.")
    count = (ratio * layers * baseline - sum(entered)) / after
    if count < -1e-6:
        lowest = (sum(entered) + after) / (layers * baseline)
        raise RetentionError(
            f"{where}: retention ratio {ratio:g} asked, but pruning after layer {len(entered) - 1} of {layers} reaches "
            f"{lowest:.4g} at least. Ask for more, prune earlier, or remove visual tokens before the language model."
        )
    return min(alive, tokens_to_keep(alive, count / alive)) if alive else 0


def layer_turn(
    policy: Policy, bound: BoundStage, shape: VideoShape, entered: Sequence[int]
) -> tuple[Stage, int | None]:
    """A layer stage ready to be called, and the `LayerTokens.count` it is shown.

    `shape.alive` says how many visual tokens of each frame are there, `entered` as in `layer_count`. The closer's
    count is solved for the policy's ratio; a stage with its counting setting given has its own; otherwise None.
    """
    if bound is policy.closer and not bound.fixed and policy.retention_ratio is not None:
        where = f"policy {policy.name!r}, stage {bound.label!r}"
        baseline = shape.frames * shape.tokens
        count = layer_count(where, policy.retention_ratio, entered, shape.total, baseline, shape.layers)
        return solved(bound, shape, count) if bound.stage.solves else bound.stage, count
    return bound.stage, round(bound.stage.attainable(shape)[0] * shape.total) if bound.fixed else None


def solved(bound: BoundStage, shape: VideoShape, token_budget: int) -> Stage:
    """The stage with the setting it names in `solves` chosen so that it leaves nearest to `token_budget` tokens.

    Bisection on `attainable` with the setting fixed, which must be monotone in it.
    """
    return _solved(bound.stage, shape, token_budget)


@lru_cache(maxsize=256)
def _solved(stage: Stage, shape: VideoShape, token_budget: int) -> Stage:
    name = stage.solves
    assert name is not None
    extra = type(stage).model_fields[name].json_schema_extra
    assert isinstance(extra, dict), f"{type(stage).__name__}.{name} must be declared with tunable(low=, high=)"
    low, high = (float(extra[end]) for end in ("low", "high"))  # type: ignore[arg-type]
    annotation = type(stage).model_fields[name].annotation
    whole = int in (annotation, *get_args(annotation)) and float not in (annotation, *get_args(annotation))

    def fixed(value: float) -> Stage:
        return stage.model_copy(update={name: round(value) if whole else value})

    def count(value: float) -> int:
        return round(fixed(value).attainable(shape)[0] * shape.total)

    if count(low) > count(high):
        fewer, more = high, low
    else:
        fewer, more = low, high
    if count(fewer) >= token_budget:
        return fixed(fewer)
    if count(more) <= token_budget:
        return fixed(more)
    for _ in range(48):
        middle = (fewer + more) / 2
        if count(middle) <= token_budget:
            fewer = middle
        else:
            more = middle
    best = fewer if token_budget - count(fewer) <= count(more) - token_budget else more
    return fixed(best)
