"""The trials of a search as points of a picture: latency across, change in score up."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vidsieve.tuner.result import TrialEvent, TuneResult

COMPOSITIONS = "compositions"
Kind = Literal["fits", "misses", "pruned", "unscored"]
"""fits: may win; misses: too slow or inaccurate, scored; pruned: scored in part; unscored: too slow to be scored."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A trial where the picture shows it. `change_points` is None for `unscored`; compositions share one name."""

    number: int
    policy: str
    latency_ms: float
    change_points: float | None
    kind: Kind


def points_of(trials: Sequence[TrialEvent]) -> list[Point]:
    """Make the points of all trials that were timed."""
    return [
        Point(
            number=trial.number,
            policy=_shown_as(trial),
            latency_ms=trial.latency.value,
            change_points=trial.change_points,
            kind=_kind(trial),
        )
        for trial in trials
        if trial.latency is not None
    ]


def _shown_as(trial: TrialEvent) -> str:
    """Name a trial in the legend, which has no room for a name of its own for every composition."""
    return COMPOSITIONS if trial.composed else trial.policy


def _kind(trial: TrialEvent) -> Kind:
    if trial.change_points is None:
        return "unscored"
    if trial.verdict == "pruned":
        return "pruned"
    return "fits" if trial.verdict in ("new best", "feasible") else "misses"


def front(points: Sequence[Point]) -> list[Point]:
    """Find the fully scored points that no other beats in both latency and change, fastest first."""
    found: list[Point] = []
    full = [point for point in points if point.kind in ("fits", "misses")]
    for point in sorted(full, key=lambda p: (p.latency_ms, -(p.change_points or 0.0))):
        if not found or (point.change_points or 0.0) > (found[-1].change_points or 0.0):
            found.append(point)
    return found


def most_telling(trials: Sequence[TrialEvent], most: int) -> list[TrialEvent]:
    """Choose at most `most` trials, in their order: new bests first, then those of the highest change."""
    if len(trials) <= most:
        return list(trials)

    def rank(trial: TrialEvent) -> tuple[bool, bool, float, int]:
        change = trial.change_points
        return (trial.verdict != "new best", change is None, -(change or 0.0), trial.number)

    return sorted(sorted(trials, key=rank)[:most], key=lambda trial: trial.number)


def chosen_trial(result: TuneResult) -> TrialEvent | None:
    """Find the trial that the result's policy came from: same policy and settings, nearest retention ratio.

    None where there is none, as for the floor policy, or the policy that removes nothing.
    """
    fits = [t for t in result.trials if t.verdict in ("new best", "feasible") and t.policy == result.policy.name]
    same = [trial for trial in fits if _same_settings(result, trial.settings)]
    # confirmation lowers the retention ratio until the latency fits, or raises it while it still does
    ours = result.policy.retention_ratio
    return min(same, key=lambda t: (abs((t.retention_ratio or 0.0) - (ours or 0.0)), t.number), default=None)


def _same_settings(result: TuneResult, settings: Mapping[str, Any]) -> bool:
    """Whether the policy has these settings; one of a stage that the policy does not have is of another variant."""
    stages = {bound.label: bound.stage for bound in result.policy.stages}
    for name, value in settings.items():
        label, _, setting = name.rpartition(".")
        if label not in stages or getattr(stages[label], setting, value) != value:
            return False
    return True


def metric_of(result: TuneResult) -> str:
    """Return 'ttft' or 'e2e'."""
    if result.latency is not None:
        return result.latency.metric
    target = result.policy.provenance.get("target", {})
    return str(target.get("metric", "ttft_ms")).removesuffix("_ms")


def baseline_ms(result: TuneResult) -> float | None:
    """Return the uncompressed median of the trials, milliseconds; None where nothing was measured."""
    measured = result.policy.provenance.get("bounds", {}).get("uncompressed_ms")
    if measured:
        return float(measured["value"])
    return result.latency.baseline_ms.value if result.latency is not None else None


# Okabe and Ito's palette without black, which is text, and yellow, which white paper swallows
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "h")
CONTROL_MARKERS = ("x", "+", "1", "2", "3")
INK = "#1b1f24"
FAINT = "#8d96a0"


@dataclass(frozen=True)
class Mark:
    """How a policy's trials are drawn."""

    colour: str
    marker: str


def marks_of(result: TuneResult) -> dict[str, Mark]:
    """Assign a mark to each policy with a trial. Colours and markers cycle at different lengths: 42 differ."""
    searched: Iterable[str] = result.search.get("policies", ())
    shown = [_shown_as(trial) for trial in result.trials]
    names = dict.fromkeys([*searched, *shown])
    marks = {name: Mark(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}
    return {name: marks[name] for name in names if name in shown}
