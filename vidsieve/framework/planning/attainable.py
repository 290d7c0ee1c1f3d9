"""Which ratios a policy can reach, the setting with which a stage leaves a count, and the counts of decoder layers.

The ratio of a policy that prunes inside the decoder is the mean over layers of the visual tokens *entering* each,
divided by those of the uncompressed model. A token that enters 7 of 28 layers counts for a quarter.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, get_args

from vidsieve.framework.composition import Composition
from vidsieve.framework.errors import PolicyError, RetentionError
from vidsieve.framework.hookspecs import REDUCING_HOOKS
from vidsieve.framework.plans import tokens_to_keep
from vidsieve.framework.records import VideoShape
from vidsieve.framework.stage import Stage, cached_on_owner


# asked for every video of every request, and nearly always about the same few shapes
@cached_on_owner(512)
def attainable(policy: Composition, shape: VideoShape) -> tuple[float, float]:
    """Lowest and highest retention ratio of `policy` on this shape: the product over its reducing stages.

    Layer stages count together, by the mean over decoder layers of the visual tokens entering each.
    """
    low = high = 1.0
    for bound in policy.stages:
        if not bound.runs("prune_layer") and bound.runs("reduce_frames", *REDUCING_HOOKS):
            stage_low, stage_high = bound.stage.attainable(shape)
            low, high = low * stage_low, high * stage_high
    if not policy.layer_stages or shape.layers < 2 or shape.total == 0:
        return low, high
    return layer_reach(policy, shape, low, high)


def check_attainable(policy: Composition, shape: VideoShape) -> None:
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
    # over layers the lowest ratio need not be a whole number of tokens, and is itself in reach
    below = wanted < low * shape.total - slack and ratio < low - 1e-9
    above = closer.fixed and wanted > high * shape.total + slack
    if not below and not above:
        return
    reach = f"{low:.4g} to {high:.4g}" if high - low > 1e-9 else f"{low:.4g} only"
    setting = f"; {closer.label}.{closer.stage.solves} is fixed, leave it out to have it solved" if closer.fixed else ""
    raise RetentionError(
        f"policy {policy.name!r}: retention ratio {ratio:g} asked, but on {shape.frames} frames of {shape.tokens} "
        f"visual tokens it reaches {reach}{setting}. Ask for a ratio in that range or use another policy."
    )


def closing(where: str, stage: Stage, shape: VideoShape, token_budget: int) -> Stage:
    """The stage that leaves `token_budget` of the tokens that reached it, the setting it names in `solves` chosen.

    Where no value of the setting leaves just as many, the nearest count is taken. `attainable` with the setting fixed
    must be monotone in it.

    Raises:
        RetentionError: with the range of counts it can leave.
    """
    low, high, found = _closing(stage, shape, token_budget)
    if found is not None:
        return found
    raise RetentionError(
        f"{where}: token_budget {token_budget} asked, but of the {shape.total} visual tokens that reach it, it leaves "
        f"{round(low * shape.total)} to {round(high * shape.total)}. Ask for a ratio within that or change the policy."
    )


@cached_on_owner(256)
def _closing(stage: Stage, shape: VideoShape, token_budget: int) -> tuple[float, float, Stage | None]:
    """The shares a stage can leave, and itself as `closing` gives it; None where the budget is out of reach."""
    low, high = stage.attainable(shape)
    if not low * shape.total - 0.5 <= token_budget <= high * shape.total + 0.5:
        return low, high, None
    if not stage.solves:
        return low, high, stage

    def count(one: Stage) -> int:
        return round(one.attainable(shape)[0] * shape.total)

    fewer, more = bracket(stage, count, token_budget)
    return low, high, fewer if token_budget - count(fewer) <= count(more) - token_budget else more


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


class PrunePoint(NamedTuple):
    """A stage acts after decoder layer `layer`: the stage at `position` of the policy, at its `turn`-th point."""

    layer: int
    position: int
    turn: int


@cached_on_owner(256)
def prune_points(policy: Composition, layers: int) -> tuple[PrunePoint, ...]:
    """All prune points of a policy on a decoder of this depth, in the order they are reached.

    Raises:
        PolicyError: a stage names a layer that is not there, or the last one, or is out of order.
    """
    points = []
    for position, bound in enumerate(policy.stages):
        if not bound.runs("prune_layer"):
            continue
        after = bound.stage.layers(layers)
        where = f"policy {policy.name!r}, stage {bound.label!r}"
        if not after or list(after) != sorted(after) or after[0] < 0:
            raise PolicyError(f"{where}: asked to act after layers {after}; they must not fall, from 0 on.")
        if after[-1] >= layers - 1:
            raise PolicyError(
                f"{where}: prunes after layer {after[-1]} of {layers}, where no layer comes after; the last useful one "
                f"is {layers - 2}."
            )
        points += [PrunePoint(layer, position, turn) for turn, layer in enumerate(after)]
    return tuple(sorted(points))


class LayerCounts:
    """One video on its way through the decoder: `entered` says how many of its visual tokens entered each layer."""

    def __init__(self, policy: Composition, *, baseline: int, offered: int, layers: int) -> None:
        self.policy, self.baseline, self.alive, self.layers = policy, baseline, offered, layers
        self.entered: list[int] = []
        self._offered: dict[int, int] = {}
        self._closing: tuple[Stage, tuple[int, ...]] | None = None

    def enter(self, layer: int) -> None:
        """All layers up to `layer` have now been entered."""
        self.entered += [self.alive] * (layer + 1 - len(self.entered))

    def leave(self, kept: int) -> None:
        """A prune point left `kept` tokens."""
        self.alive = kept

    @property
    def ratio(self) -> float:
        """Mean over the layers entered so far, divided by the baseline."""
        return sum(self.entered) / (len(self.entered) * self.baseline)

    @property
    def afford(self) -> float | None:
        """Visual tokens each coming layer may be given, the same for all, for the policy's ratio; None without one."""
        ratio, coming = self.policy.retention_ratio, self.layers - len(self.entered)
        if ratio is None or coming == 0:
            return None
        return (ratio * self.layers * self.baseline - sum(self.entered)) / coming

    def offered(self, point: PrunePoint) -> int:
        """How many tokens came to the first prune point of the stage at `point`."""
        return self._offered.setdefault(point.position, self.alive)

    def ask(self, point: PrunePoint) -> tuple[Stage, int | None]:
        """The stage ready to be called at `point`, and how many tokens it is to leave; None if only it knows.

        The closer's counting setting is solved, at its first point, so that the policy's ratio is met by all layers
        together; whatever other stages do behind it is taken into account.

        Raises:
            RetentionError: what entered so far is already too much for the ratio.
        """
        bound, first = self.policy.stages[point.position], self.offered(point)
        self.enter(point.layer)
        if bound is self.policy.closer and not bound.fixed and self.policy.retention_ratio is not None:
            if bound.stage.data_dependent and not bound.stage.solves:
                return bound.stage, None
            if self._closing is None or point.turn == 0:
                so_far = tuple(sorted(self._offered.items()))
                self._closing = _closed(self.policy, point, self.baseline, self.layers, tuple(self.entered), so_far)
            stage, counts = self._closing
            return stage, min(self.alive, counts[point.turn])
        if bound.stage.solves is None:
            return bound.stage, None
        return bound.stage, min(self.alive, max(1, bound.stage.leaves(first, self.layers)[point.turn]))


def layer_reach(policy: Composition, shape: VideoShape, low: float, high: float) -> tuple[float, float]:
    """Lowest and highest mean over layers, when `low` to `high` of the video's tokens enter the first layer."""
    ends = {}
    for position, bound in enumerate(policy.stages):
        if bound.runs("prune_layer"):
            ends[position] = extremes(bound.stage) if bound.stage.solves and not bound.fixed else (bound.stage,) * 2
    total, layers = shape.total, shape.layers
    means = []
    for end, share in enumerate((low, high)):
        offered = max(1, round(share * total))

        def left(point: PrunePoint, first: int, end: int = end) -> int:
            stage = ends[point.position][end]
            if stage.solves is None and _unsure(stage, first, layers):
                return first if end else 1
            return stage.leaves(first, layers)[point.turn]

        means.append(_walk(prune_points(policy, layers), -1, layers, offered, {}, left) / (layers * total))
    return min(means), max(means)


def _unsure(stage: Stage, offered: int, layers: int) -> bool:
    """Whether a stage that solves nothing may leave one number or another."""
    low, high = stage.attainable(VideoShape(1, offered, layers))
    return low < high


def _walk(
    points: tuple[PrunePoint, ...],
    after: int,
    layers: int,
    alive: int,
    offered: Mapping[int, int],
    left: Callable[[PrunePoint, int], int],
) -> int:
    """Visual tokens that enter the layers behind layer `after`, summed; `left(point, offered)` says what goes on."""
    total, at, firsts = 0, after + 1, dict(offered)
    for point in points:
        total += alive * (point.layer + 1 - at)
        at = point.layer + 1
        alive = min(alive, max(1, left(point, firsts.setdefault(point.position, alive))))
    return total + alive * (layers - at)


# asked for every video of every request, and nearly always about the same few numbers; the solved stage is the same
# object each time, which the cache of hook callers needs
@cached_on_owner(512)
def _closed(
    policy: Composition,
    point: PrunePoint,
    baseline: int,
    layers: int,
    entered: tuple[int, ...],
    offered: tuple[tuple[int, int], ...],
) -> tuple[Stage, tuple[int, ...]]:
    """The closer with its setting solved from `point` on, and what it leaves after each of its points."""
    ratio, stage = policy.retention_ratio, policy.stages[point.position].stage
    assert ratio is not None
    alive = first = dict(offered)[point.position]
    points = prune_points(policy, layers)
    ahead = points[points.index(point) :]
    # solved at its first point, where what is alive is what it is offered
    target = ratio * layers * baseline - sum(entered)

    def total(counts: tuple[int, ...]) -> int:
        def left(one: PrunePoint, first: int) -> int:
            if one.position == point.position:
                return counts[one.turn]
            other = policy.stages[one.position].stage
            if other.solves is None and _unsure(other, first, layers):
                return first
            return other.leaves(first, layers)[one.turn]

        return _walk(ahead, point.layer, layers, alive, dict(offered), left)

    turns = sum(one.position == point.position for one in ahead)
    lowest = extremes(stage)[0].leaves(first, layers) if stage.solves else (1,) * turns
    if total(lowest) > target + (layers - len(entered)) + 1e-6:
        raise RetentionError(
            f"policy {policy.name!r}, stage {policy.stages[point.position].label!r}: retention ratio {ratio:g} asked, "
            f"but pruning after layer {point.layer} of {layers} reaches "
            f"{(sum(entered) + total(lowest)) / (layers * baseline):.4g} at least. Ask for more, prune earlier, or "
            "remove visual tokens before the language model."
        )
    if stage.solves is None:
        low, high = 1, max(1, alive)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if total((middle,) * turns) <= target + 1e-6 else (low, middle - 1)
        return stage, (low,) * turns
    fewer, _ = bracket(stage, lambda one: total(one.leaves(first, layers)), target + 1e-6)
    return fewer, tuple(max(1, count) for count in fewer.leaves(first, layers))
