"""Before the search: the uncompressed model, the floor, and for each policy where the target lies."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vidsieve.framework.errors import TargetUnreachableError, TuneError
from vidsieve.framework.policy import Policy
from vidsieve.tuner.events import Bounds
from vidsieve.tuner.failure import reason_of, release_memory
from vidsieve.tuner.knobs import knobs_of, retention_window
from vidsieve.tuner.lab import Lab
from vidsieve.tuner.latency import Latency
from vidsieve.tuner.space import RETENTION_DIGITS, PolicySpace, Space
from vidsieve.tuner.words import ms

AIM = 0.975
"""Retention ratios are searched up to where this share of the target is predicted: room for noise to confirm in."""
SLACK = 0.8
"""The search looks from this share of the largest retention ratio that meets the target up to that ratio."""


@dataclass(frozen=True)
class Explored:
    """What the search starts from. `floor` is the policy that the floor was measured with."""

    bounds: Bounds
    space: Space
    floor: Policy


def explore(lab: Lab, policies: Sequence[Policy]) -> Explored:
    """Measure baseline and floor, set the target, and find each policy's range of retention ratios.

    Raises:
        TargetUnreachableError: the floor lies above the target; the message gives both.
        TuneError: no policy can take part; the message gives the reasons.
    """
    set_aside: dict[str, str] = {}
    lowest = _lowest(lab, policies, set_aside)
    if not lowest:
        raise TuneError(f"search: there is nothing to search. {_listed(set_aside)}")
    floor_policy = min(lowest, key=lambda entry: entry[2].ratio.value)[1]
    floor = lab.probe(floor_policy, lab.timings.final)
    _set_target(lab, floor)
    _refuse_unreachable(lab, floor, floor_policy)
    space, limits = _ranges(lab, lowest, set_aside)
    if not space.entries:
        raise TuneError(f"search: there is nothing to search. {_listed(set_aside)}")
    bounds = Bounds(
        metric=lab.request.metric,
        target_ms=lab.request.target_ms(lab.baseline_ms),
        baseline=floor.baseline_ms,
        floor=floor.policy_ms,
        floor_policy=_told(floor_policy),
        already_met=lab.already_met,
        policies=tuple(space.entries),
        limits=limits,
        set_aside=set_aside,
        warnings=tuple(lab.warnings),
    )
    return Explored(bounds, space, floor_policy)


def has_free_retention(policy: Policy) -> bool:
    """Whether a retention ratio decides the count; otherwise the policy's own settings do."""
    return policy.retention_ratio is not None and policy.closer is not None and not policy.closer.fixed


def _lowest(lab: Lab, policies: Sequence[Policy], set_aside: dict[str, str]) -> list[tuple[Policy, Policy, Latency]]:
    """(policy, the policy at its smallest retention, its latency) for each that runs; the rest with a reason."""
    found = []
    for index, policy in enumerate(policies):
        knobs_of(policy), retention_window(policy)  # a faulty search section is the user's to mend, not a reason
        missing = policy.needs() - lab.bench.offers
        if policy.is_empty or missing:
            set_aside[policy.name] = f"needs {', '.join(sorted(missing))}" if missing else "removes nothing"
            continue
        try:
            low = policy.attainable(lab.bench.shape)[0]
            smallest = policy.with_(retention_ratio=low) if has_free_retention(policy) else policy
            found.append((policy, smallest, lab.probe(smallest, lab.timings.quick)))
        except Exception as error:
            set_aside[policy.name] = reason_of(error)
            release_memory(error)
        lab.listener.step("find the floor", index + 1, len(policies))
    return found


def _set_target(lab: Lab, floor: Latency) -> None:
    """Fix the reference: the uncompressed median as measured beside the floor."""
    lab.baseline_ms = floor.baseline_ms.value
    lab.target_ratio = lab.request.target_ms(lab.baseline_ms) / lab.baseline_ms
    lab.already_met = lab.request.latency_ms is not None and floor.baseline_ms.high <= lab.request.latency_ms


def _refuse_unreachable(lab: Lab, floor: Latency, policy: Policy) -> None:
    target = lab.request.target_ms(lab.baseline_ms)
    name = f"{lab.request.metric}_ms"
    told = (
        f"the floor, {_told(policy)}, takes {ms(floor.policy_ms.value)} ms "
        f"[{ms(floor.policy_ms.low)}, {ms(floor.policy_ms.high)}]; uncompressed {ms(floor.baseline_ms.value)} ms"
    )
    if floor.policy_ms.low > target:
        raise TargetUnreachableError(
            f"target: {ms(target)} ms of {name} asked, but {told}. Ask for more time, or give the model less video "
            "(--frames, --max-pixels)."
        )
    if floor.policy_ms.high > target:
        lab.warnings.append(f"the target of {ms(target)} ms is within noise of what is possible: {told}")


def _ranges(
    lab: Lab, lowest: Sequence[tuple[Policy, Policy, Latency]], set_aside: dict[str, str]
) -> tuple[Space, dict[str, float]]:
    """The space, and the largest retention ratio predicted to meet the target by policy."""
    entries: dict[str, PolicySpace] = {}
    limits: dict[str, float] = {}
    for index, (policy, _, latency) in enumerate(lowest):
        try:
            if not has_free_retention(policy):
                entries[policy.name] = PolicySpace.of(policy, None)
            elif latency.ratio.low > lab.target_ratio:
                set_aside[policy.name] = f"takes {ms(latency.ratio.value * lab.baseline_ms)} ms at its floor"
            else:
                limit = _limit(lab, policy)
                limits[policy.name] = limit
                entries[policy.name] = PolicySpace.of(policy, _range(lab, policy, limit))
        except Exception as error:
            set_aside[policy.name] = reason_of(error)
            release_memory(error)
        lab.listener.step("find each policy's range", index + 1, len(lowest))
    return Space(entries), limits


def _limit(lab: Lab, policy: Policy) -> float:
    """The largest retention ratio of `policy` predicted to meet the target: bracket, solve, measure there, solve."""
    lowest, high = policy.attainable(lab.bench.shape)
    if lab.already_met:
        return high
    lab.probe(policy.with_(retention_ratio=high), lab.timings.quick)
    curve, aim = lab.curves[policy.name], AIM * lab.target_ratio
    first = curve.solve(aim)
    if first is not None and lowest < first < high:
        lab.probe(policy.with_(retention_ratio=first), lab.timings.quick)
    solved = curve.solve(aim)
    return lowest if solved is None else solved


def _range(lab: Lab, policy: Policy, limit: float) -> tuple[float, float]:
    """Retention ratios worth searching, within what the policy's `search:` section allows."""
    low, high = policy.attainable(lab.bench.shape)
    low, high = max(low, 0.01 if lab.already_met else SLACK * limit), min(high, limit)
    allowed_low, allowed_high = retention_window(policy)
    high = max(min(high, allowed_high), policy.attainable(lab.bench.shape)[0])
    low = min(max(low, allowed_low), high)
    scale = 10**RETENTION_DIGITS
    return (low, max(low, math.floor(high * scale + 1e-6) / scale))


def _told(policy: Policy) -> str:
    """The policy and its retention ratio in words."""
    ratio = policy.retention_ratio
    return policy.name if ratio is None else f"{policy.name} at retention {ratio:.3g}"


def _listed(set_aside: Mapping[str, str]) -> str:
    """The policies set aside with their reasons, or that none was given."""
    if not set_aside:
        return "No policy was given."
    return "Set aside: " + "; ".join(f"{name} ({reason})" for name, reason in set_aside.items()) + "."
