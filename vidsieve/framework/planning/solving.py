"""What one stage can leave, and the setting with which it leaves the count asked for."""

from collections.abc import Callable
from typing import get_args

from vidsieve.framework.errors import RetentionError
from vidsieve.framework.policy.composition import BoundStage
from vidsieve.framework.records import VideoShape
from vidsieve.framework.stage import Stage, cached_on_owner


@cached_on_owner(512)
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


def solved(bound: BoundStage, shape: VideoShape, token_budget: int) -> Stage:
    """The stage with the setting it names in `solves` chosen so that it leaves nearest to `token_budget` tokens.

    Bisection on `attainable` with the setting fixed, which must be monotone in it.
    """
    return _solved(bound.stage, shape, token_budget)


@cached_on_owner(256)
def _solved(stage: Stage, shape: VideoShape, token_budget: int) -> Stage:
    def count(one: Stage) -> int:
        return round(one.attainable(shape)[0] * shape.total)

    fewer, more = bracket(stage, count, token_budget)
    return fewer if token_budget - count(fewer) <= count(more) - token_budget else more


def bracket(stage: Stage, count: Callable[[Stage], float], target: float) -> tuple[Stage, Stage]:
    """Two neighbours of `stage` in the setting it solves: one with `count` up to `target`, one with more.

    Both are the same end of the setting's range when even that end does not reach the target.
    """
    name = stage.solves
    assert name is not None
    annotation = type(stage).model_fields[name].annotation
    whole = int in (annotation, *get_args(annotation)) and float not in (annotation, *get_args(annotation))

    def fixed(value: float) -> Stage:
        return stage.model_copy(update={name: round(value) if whole else value})

    low, high = _range(stage)
    fewer, more = (high, low) if count(fixed(low)) > count(fixed(high)) else (low, high)
    if count(fixed(fewer)) >= target:
        return fixed(fewer), fixed(fewer)
    if count(fixed(more)) <= target:
        return fixed(more), fixed(more)
    for _ in range(48):
        middle = (fewer + more) / 2
        if count(fixed(middle)) <= target:
            fewer = middle
        else:
            more = middle
    return fixed(fewer), fixed(more)


@cached_on_owner(256)
def extremes(stage: Stage) -> tuple[Stage, Stage]:
    """A layer stage at both ends of the setting it solves, the one that leaves less first."""
    name = stage.solves
    assert name is not None
    ends = [stage.model_copy(update={name: value}) for value in _range(stage)]
    ends.sort(key=lambda one: sum(one.leaves(1_000_000, 1_000)))
    return ends[0], ends[1]


def _range(stage: Stage) -> tuple[float, float]:
    extra = type(stage).model_fields[str(stage.solves)].json_schema_extra
    assert isinstance(extra, dict), f"{type(stage).__name__}.{stage.solves} must be declared with tunable(low=, high=)"
    return float(extra["low"]), float(extra["high"])  # type: ignore[arg-type]
