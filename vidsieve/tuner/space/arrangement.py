"""Put stages in an order in which they fit together, as the rules of composition say.

Nothing here knows what fits: orders are tried, and `composition_faults` is asked.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import get_args

from vidsieve.framework.composition import BoundStage, Composition, composition_faults
from vidsieve.framework.errors import PluginError
from vidsieve.framework.hookspecs import REDUCING_HOOKS, STAGE_HOOKS, VIDEO_HOOKS
from vidsieve.framework.stage import Stage, cached_on_owner

RATIO = 0.25
"""What a composition is asked to keep before a search solves it."""


def fitting_order(stages: Sequence[Stage]) -> tuple[int, ...] | None:
    """Find the first order, from house order on, in which `stages` make a policy without faults; None if none does."""
    return next((order for order in _orders(stages) if fit([stages[index] for index in order])), None)


def fit(stages: Sequence[Stage]) -> bool:
    """Whether stages in this order make a policy without faults."""
    return not composition_faults(composed([(str(index), stage) for index, stage in enumerate(stages)]))


def composed(named: Sequence[tuple[str, Stage]]) -> Composition:
    """Compose (name, stage) pairs in their order: the last that removes tokens is left to meet the ratio.

    Those that remove some before it are given the middle of their range. A stage that closes and whose count depends
    on content alone is asked for no ratio.
    """
    stages = tuple(BoundStage(name, name, stage) for name, stage in named)
    draft = Composition(name="", stages=stages)
    last = draft.counter
    ratio = None if last is None or (last.stage.data_dependent and not last.stage.solves) else RATIO
    counted = tuple(bound if bound is last else _with_count(bound) for bound in stages)
    return Composition(name="", retention_ratio=ratio, stages=counted)


def _orders(stages: Sequence[Stage]) -> Iterator[tuple[int, ...]]:
    """List the orders to try: stages that work on visual tokens in every order, the others before or behind them."""

    def house(index: int) -> int:
        return STAGE_HOOKS.index(stages[index].hooks()[0])

    ordered = sorted(range(len(stages)), key=house)
    video = [index for index in ordered if set(stages[index].hooks()) & set(VIDEO_HOOKS)]
    first = [index for index in ordered if index not in video and "reduce_frames" in stages[index].hooks()]
    last = [index for index in ordered if index not in (*first, *video)]
    for middle in itertools.permutations(video):
        yield (*first, *middle, *last)


def _with_count(bound: BoundStage) -> BoundStage:
    """Give a stage that removes tokens the middle of the setting that decides how many."""
    counts = bound.stage.solves is not None and bound.runs("reduce_frames", *REDUCING_HOOKS)
    return replace(bound, stage=_halfway(bound.stage)) if counts else bound


@cached_on_owner(1)
def _halfway(stage: Stage) -> Stage:
    """Set what `stage` solves to the middle of its range.

    Raises:
        PluginError: the stage refuses a value of its own range.
    """
    name = str(stage.solves)
    declared = stage.settings()[name]
    extra = declared.json_schema_extra
    assert isinstance(extra, dict)  # a stage without a range for it is refused when its class is made
    low, high = float(extra["low"]), float(extra["high"])  # type: ignore[arg-type]
    middle = math.sqrt(low * high) if extra.get("log") else (low + high) / 2
    kinds = (declared.annotation, *get_args(declared.annotation))
    value = round(middle) if int in kinds and float not in kinds else middle
    try:
        return type(stage).build(stage.model_dump(mode="json") | {name: value})
    except ValueError as error:  # pydantic's is one
        raise PluginError(
            f"stage {type(stage).__name__}: refuses {name} = {value:g}, within its own range: {error}"
        ) from None
