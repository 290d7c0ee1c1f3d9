"""Measure, before the search, the uncompressed model, the floor, and for each policy where the target lies."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from vidsieve.framework.errors import TargetUnreachableError, TuneError, VidsieveError
from vidsieve.framework.policy.policy import Policy
from vidsieve.tuner.measure.measurement import Measurement, Target
from vidsieve.tuner.measure.retention_limits import Retention, find_composed_retention, find_retentions
from vidsieve.tuner.measured import Latency
from vidsieve.tuner.result import Bounds
from vidsieve.tuner.space.candidate import COMPOSED
from vidsieve.tuner.space.composed_space import ComposedSpace, policy_of
from vidsieve.tuner.space.grammar import Grammar
from vidsieve.tuner.space.knobs import has_free_retention as has_free_retention
from vidsieve.tuner.space.knobs import retention_window
from vidsieve.tuner.space.search_space import PolicySpace, Space
from vidsieve.tuner.statistics import ms
from vidsieve.tuner.trial_failure import POLICY_FAULTS, fault_reason

T = TypeVar("T")

NO_TIME = "time budget used up"
BESIDE = 4
"""Policies that share the turns of a baseline: with more, some would lie too far in time from it."""
MOST_EXAMPLES = 12
"""Compositions that are timed where no published policy can be, to know what is possible."""


@dataclass(frozen=True)
class Explored:
    """Bounds and space of a search; `floor` is the policy that the floor was measured with."""

    bounds: Bounds
    space: Space
    floor: Policy


def explore(measurement: Measurement, policies: Sequence[Policy], grammar: Grammar | None = None) -> Explored:
    """Measure baseline and floor, set the target, and find what retention ratio of each policy meets it.

    Once the time budget is used up, policies not yet measured are set aside; one is always measured. Compositions of
    `grammar` are a choice beside them, and measured here only where no policy can be.

    Raises:
        TargetUnreachableError: the floor lies above the target; the message gives both.
        TuneError: no policy can take part; the message gives the reasons.
    """
    set_aside: dict[str, str] = {}
    lowest = _lowest(measurement, policies, set_aside)
    examples = [] if lowest or grammar is None else _lowest(measurement, list(_some(grammar)), {})
    if not lowest and not examples:
        if grammar is not None:
            set_aside[COMPOSED] = _nothing_fits(grammar)
        raise TuneError(f"search: there is nothing to search. {_listed(set_aside)}")
    floor_policy = min(lowest or examples, key=lambda entry: entry[2].ratio.value)[1]
    rules = measurement.timings.final
    floor = measurement.probe(floor_policy, replace(rules, max_seconds=rules.max_seconds / 2))
    measurement.set_target(_target(measurement, floor))
    _refuse_unreachable(measurement, floor, floor_policy)
    entries = _entries(measurement, lowest, set_aside)
    composed = _compositions(measurement, grammar, (floor_policy, floor), set_aside)
    space = Space(entries, composed)
    if not space.choices:
        raise TuneError(f"search: there is nothing to search. {_listed(set_aside)}")
    curves = [measurement.curves[policy.name] for policy, _, _ in lowest if policy.name in measurement.curves]
    bounds = Bounds(
        metric=measurement.request.metric,
        target_ms=measurement.target.target_ms,
        baseline=floor.baseline_ms,
        floor=floor.policy_ms,
        floor_policy=_described(floor_policy),
        already_met=measurement.target.already_met,
        policies=tuple(space.choices),
        limits={name: entry.retention[1] for name, entry in space.entries.items() if entry.retention},
        set_aside=set_aside,
        warnings=tuple(measurement.warnings),
        model_error=max((error for curve in curves if (error := curve.error) is not None), default=None),
        configurations=sum(len(curve.measured) for curve in curves),
    )
    return Explored(bounds, space, floor_policy)


def _lowest(
    measurement: Measurement, policies: Sequence[Policy], set_aside: dict[str, str]
) -> list[tuple[Policy, Policy, Latency]]:
    """Time each policy at its smallest retention: (policy, policy at that retention, latency); set the rest aside."""
    smallest: list[tuple[Policy, Policy]] = []
    for policy in policies:
        # a faulty `search:` section is for the user to mend and no reason to set the policy aside
        PolicySpace.of(policy, None)
        retention_window(policy)
        missing = policy.needs() - measurement.bench.offers
        if policy.is_empty or missing:
            set_aside[policy.name] = f"needs {', '.join(sorted(missing))}" if missing else "removes nothing"
            continue
        try:
            low = policy.attainable(measurement.bench.shape)[0]
            smallest.append((policy, policy.with_(retention_ratio=low) if has_free_retention(policy) else policy))
        except POLICY_FAULTS as error:
            set_aside[policy.name] = fault_reason(error)
    found: list[tuple[Policy, Policy, Latency]] = []
    for done, some in _in_groups(smallest):
        if found and _time_is_up(measurement):
            set_aside |= {policy.name: NO_TIME for policy, _ in some}
            continue
        timed = measurement.probe_beside([small for _, small in some], measurement.timings.quick)
        for (policy, small), latency in zip(some, timed, strict=True):
            if isinstance(latency, Exception):
                set_aside[policy.name] = fault_reason(latency)
            else:
                found.append((policy, small, latency))
        measurement.listener.step("find the floor", done, len(smallest))
    return found


def _in_groups(entries: Sequence[T]) -> Iterator[tuple[int, Sequence[T]]]:
    """Give entries in groups that are timed beside one baseline, with the count up to each group's end."""
    for start in range(0, len(entries), BESIDE):
        group = entries[start : start + BESIDE]
        yield start + len(group), group


def _target(measurement: Measurement, floor: Latency) -> Target:
    """Make the target, with the uncompressed median measured in pairs with the floor as reference."""
    request, baseline = measurement.request, floor.baseline_ms
    return Target(
        baseline_ms=baseline.value,
        target_ms=request.target_ms(baseline.value),
        already_met=request.latency_ms is not None and baseline.high <= request.latency_ms,
    )


def _refuse_unreachable(measurement: Measurement, floor: Latency, policy: Policy) -> None:
    target = measurement.target.target_ms
    name = f"{measurement.request.metric}_ms"
    floor_text = (
        f"the floor, {_described(policy)}, takes {ms(floor.policy_ms.value)} ms "
        f"[{ms(floor.policy_ms.low)}, {ms(floor.policy_ms.high)}]; uncompressed {ms(floor.baseline_ms.value)} ms"
    )
    if floor.policy_ms.low > target:
        raise TargetUnreachableError(
            f"target: {ms(target)} ms of {name} asked, but {floor_text}. Ask for more time, or give the model "
            "less video (`frames`, `max_pixels`)."
        )
    if floor.policy_ms.high > target:
        measurement.warnings.append(f"the target of {ms(target)} ms is within noise of what is possible: {floor_text}")


def _some(grammar: Grammar) -> Iterator[Policy]:
    """Give a few compositions to measure where no published policy can be; those that cannot be made are passed."""
    for skeleton in itertools.islice(grammar.skeletons(), MOST_EXAMPLES):
        try:
            yield policy_of(grammar, skeleton)
        except VidsieveError:
            continue


def _nothing_fits(grammar: Grammar) -> str:
    """Say why no composition can be searched."""
    left_out = "; ".join(f"{name}: {why}" for name, why in grammar.left_out.items())
    if grammar.count():
        return "none that was tried could be measured"
    return "no stages fit together into a policy that is not published" + (
        f" (left out: {left_out})" if left_out else ""
    )


def _compositions(
    measurement: Measurement, grammar: Grammar | None, floor: tuple[Policy, Latency], set_aside: dict[str, str]
) -> ComposedSpace | None:
    """Build the space of compositions; None where nothing fits, with the reason."""
    if grammar is None:
        return None
    if not grammar.count():
        set_aside[COMPOSED] = _nothing_fits(grammar)
        return None
    try:
        found = find_composed_retention(measurement, *floor)
    except POLICY_FAULTS as error:
        set_aside[COMPOSED] = fault_reason(error)
        return None
    bench = measurement.bench
    return ComposedSpace(grammar, (found.low, found.high), solved=found.solved, offers=bench.offers, shape=bench.shape)


def _entries(
    measurement: Measurement, lowest: Sequence[tuple[Policy, Policy, Latency]], set_aside: dict[str, str]
) -> dict[str, PolicySpace]:
    """Build the spaces of the policies that can meet the target, and set the others aside with a reason."""
    ranges: dict[str, Retention | Exception | None] = {}
    solvable: list[Policy] = []
    for policy, _, latency in lowest:
        if not has_free_retention(policy):
            ranges[policy.name] = None
        elif latency.ratio.low > measurement.target.ratio:
            set_aside[policy.name] = f"takes {ms(latency.ratio.value * measurement.target.baseline_ms)} ms at its floor"
        else:
            solvable.append(policy)
    for done, some in _in_groups(solvable):
        if ranges and _time_is_up(measurement):
            set_aside |= {policy.name: NO_TIME for policy in some}
            continue
        found = find_retentions(measurement, some)
        ranges |= {policy.name: result for policy, result in zip(some, found, strict=True)}
        measurement.listener.step("find each policy's range", done, len(solvable))
    entries: dict[str, PolicySpace] = {}
    bench, metric = measurement.bench, measurement.request.metric
    for policy in (policy for policy, _, _ in lowest if policy.name in ranges):
        try:
            match ranges[policy.name]:
                case Exception() as error:
                    set_aside[policy.name] = fault_reason(error)
                case None:
                    entries[policy.name] = PolicySpace.of(policy, None, bench=bench, metric=metric)
                case Retention(low, high, solved):
                    entries[policy.name] = PolicySpace.of(
                        policy, (low, high), solved=solved, bench=bench, metric=metric
                    )
        except POLICY_FAULTS as error:
            set_aside[policy.name] = fault_reason(error)
    for entry in entries.values():
        _warn_left_out(measurement, entry)
    return entries


def _warn_left_out(measurement: Measurement, entry: PolicySpace) -> None:
    """Warn of variants that the model has no inputs for."""
    for variant in PolicySpace.of(entry.policy, None).variants.values():
        missing = variant.policy.needs() - measurement.bench.offers
        if missing:
            measurement.warn(f"{variant.policy.name} is not searched: it needs {', '.join(sorted(missing))}")


def _time_is_up(measurement: Measurement) -> bool:
    left = measurement.seconds_left()
    return left is not None and left <= 0


def _described(policy: Policy) -> str:
    """Name a policy with its retention ratio."""
    ratio = policy.retention_ratio
    return policy.name if ratio is None else f"{policy.name} at retention {ratio:.3g}"


def _listed(set_aside: Mapping[str, str]) -> str:
    """List the policies set aside with their reasons."""
    if not set_aside:
        return "No policy was given."
    return "Set aside: " + "; ".join(f"{name} ({reason})" for name, reason in set_aside.items()) + "."
