"""Find how many tokens a policy may keep within the target: solved from few timed configurations, or a range."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vidsieve.framework.errors import TuneError
from vidsieve.framework.policy.policy import Policy
from vidsieve.tuner.measure.latency import TimingRules
from vidsieve.tuner.measure.measurement import Measurement
from vidsieve.tuner.measure.retention_curve import Point, RetentionCurve
from vidsieve.tuner.measured import Latency
from vidsieve.tuner.space.candidate import COMPOSED, RETENTION_DIGITS, Candidate
from vidsieve.tuner.space.knobs import has_free_retention, retention_window

AIM = 0.975
"""Retention ratios are solved for this share of the target: room for noise to confirm in."""
ROUNDS = 2
CLOSE = 0.01
"""A prediction this near to what is then measured needs no second round."""
CAREFUL = 4
"""Retention is solved from few configurations: what is solved is timed with up to this many times the quick pairs."""
SETTLED = 0.03
"""A composition whose retention ratio moves by less than this share is settled."""
LEAST = 0.01
"""The lowest retention ratio searched where the uncompressed model meets the target."""


@dataclass(frozen=True)
class Retention:
    """The retention ratios of one policy: `low` to `high` are searched, or `high` is `solved` and low equals it."""

    low: float
    high: float
    solved: bool


def find_retentions(measurement: Measurement, policies: Sequence[Policy]) -> list[Retention | Exception]:
    """Solve the retention of policies that have been timed at their lowest, or find the range of each to search.

    Where latency is not monotone in retention, the largest ratio predicted to fit means little: then the range from
    the lowest to the largest that was measured to fit is searched, and a warning says so. A policy that cannot be run
    gets its error.
    """
    failed = {} if measurement.target.already_met else _bracket_and_solve(measurement, policies)
    return [failed.get(policy.name) or _found(measurement, policy) for policy in policies]


def _found(measurement: Measurement, policy: Policy) -> Retention:
    """Read the retention off a policy's curve."""
    lowest, highest = policy.attainable(measurement.bench.shape)
    if measurement.target.already_met:
        return _within(policy, lowest, LEAST, highest, solved=False)
    curve = measurement.curves[policy.name]
    if not curve.monotone:
        measurement.warn(
            f"latency of {policy.name} is not monotone in retention within its error: retention is searched"
        )
        return _within(policy, lowest, lowest, curve.largest_within(measurement.target.ratio) or lowest, solved=False)
    solved = curve.solve(AIM * measurement.target.ratio)
    limit = lowest if solved is None else solved
    return _within(policy, lowest, limit, limit, solved=True)


def _bracket_and_solve(measurement: Measurement, policies: Sequence[Policy]) -> dict[str, Exception]:
    """Time where the largest retention ratio that meets the target lies: bracket, solve, measure there, solve again.

    A point half-way shows where latency falls as retention grows, and mends the first guess where it bends; all tokens,
    the longest runs there are, only where that leaves the target open. These are timed quickly: what counts is measured
    where the target lies. Returns the errors of those that cannot be run, by name.
    """
    failed: dict[str, Exception] = {}
    _probe(measurement, _at(measurement, policies, 0.5), measurement.timings.quick, failed)
    open_ended = [p for p in policies if p.name not in failed and _tells_nothing(measurement, p)]
    _probe(measurement, _at(measurement, open_ended, 1.0), measurement.timings.quick, failed)
    rules = careful(measurement.timings.quick)
    unsettled = list(policies)
    for _ in range(ROUNDS):
        unsettled = [policy for policy in unsettled if policy.name not in failed]
        guesses = [guess for policy in unsettled if (guess := _guess(measurement, policy)) is not None]
        expected = [measurement.curves[guess.name].predict(guess.retention_ratio or 1.0) for guess in guesses]
        measured = _probe(measurement, guesses, rules, failed)
        off = {
            guess.name
            for guess, before, latency in zip(guesses, expected, measured, strict=True)
            if isinstance(latency, Latency) and abs(latency.ratio.value / before - 1) > CLOSE
        }
        unsettled = [policy for policy in unsettled if policy.name in off]
    return failed


def _at(measurement: Measurement, policies: Sequence[Policy], share: float) -> list[Policy]:
    """Return the policies at a share of the way from their lowest retention ratio to their highest."""
    ends = [(policy, *policy.attainable(measurement.bench.shape)) for policy in policies]
    return [p.with_(retention_ratio=round_down(low + share * (high - low), low)) for p, low, high in ends]


def _tells_nothing(measurement: Measurement, policy: Policy) -> bool:
    """Whether the point half-way leaves open where the target lies: beyond it, or anywhere on a curve that falls."""
    curve = measurement.curves[policy.name]
    half = curve.predict(max(curve.measured))
    return half <= measurement.target.ratio or half >= 1


def _guess(measurement: Measurement, policy: Policy) -> Policy | None:
    """Return the policy at the retention ratio that its curve says meets the aim; None where that has been timed."""
    lowest = policy.attainable(measurement.bench.shape)[0]
    curve = measurement.curves[policy.name]
    solved = curve.solve(AIM * measurement.target.ratio)
    ratio = lowest if solved is None else round_down(solved, lowest)
    return None if ratio in curve.measured else policy.with_(retention_ratio=ratio)


def _probe(
    measurement: Measurement, policies: Sequence[Policy], rules: TimingRules, failed: dict[str, Exception]
) -> list[Latency | Exception]:
    """Time policies in shared turns and note those that fail."""
    results = measurement.probe_beside(policies, rules) if policies else []
    failed.update(
        {p.name: result for p, result in zip(policies, results, strict=True) if isinstance(result, Exception)}
    )
    return results


def careful(quick: TimingRules) -> TimingRules:
    """Make timing rules for an interval half as wide, with more pairs where it takes them and the seconds allow it."""
    return replace(quick, max_pairs=CAREFUL * quick.max_pairs, half_width_ratio=quick.half_width_ratio / 2)


def find_composed_retention(measurement: Measurement, floor: Policy, latency: Latency) -> Retention:
    """Find the retention of compositions on the whole, from what published policies were timed at.

    Their points together make the curve that each composition's is like, until it is timed itself. Where none was
    timed at more than one retention ratio, the curve is a line from `floor`, which took `latency`, to all tokens.
    """
    if measurement.target.already_met:
        return Retention(LEAST, 1.0, solved=False)
    curves = [curve for curve in measurement.curves.values() if curve.like is None and len(curve.measured) > 1]
    points = [point for curve in curves for point in curve.points]
    if not points:
        lowest = floor.attainable(measurement.bench.shape)[0]
        points = [Point(min(lowest, LEAST), latency.ratio.value, 0.0), Point(1.0, 1.0, 0.0)]
    pooled = RetentionCurve(points)
    measurement.curves[COMPOSED] = pooled
    solved = pooled.solve(AIM * measurement.target.ratio)
    limit = pooled.measured[0] if solved is None else solved
    return Retention(limit, limit, solved=True)


def _within(policy: Policy, lowest: float, low: float, high: float, *, solved: bool) -> Retention:
    """Clip a range to what the policy's `search:` section allows and what it can reach."""
    allowed_low, allowed_high = retention_window(policy)
    high = round_down(max(min(high, allowed_high), lowest), lowest)
    return Retention(high if solved else min(max(low, allowed_low, lowest), high), high, solved)


def round_down(ratio: float, lowest: float) -> float:
    """Cut `ratio` to the digits that a candidate has, but not below `lowest`."""
    scale = 10**RETENTION_DIGITS
    return max(lowest, math.floor(ratio * scale + 1e-6) / scale)


class RetentionSolver:
    """Solve the retention of candidates by the measured curves, and add every timed candidate to them.

    A variant (a policy of another name, with a stage switched off or exchanged) has a curve of its own, of the shape of
    the published policy's. Settings shift latency too, but less than noise does as a rule: they share a curve.
    """

    def __init__(self, measurement: Measurement) -> None:
        self._measurement = measurement

    def __call__(self, base: str, candidate: Policy) -> float:
        """Solve the retention ratio of `candidate`, a variant of the policy named `base`.

        Raises:
            TuneError: with these settings even the fewest tokens it can keep are predicted to miss the target.
        """
        low, high = candidate.attainable(self._measurement.bench.shape)
        curve = self._curve(base, candidate.name)
        solved = curve.solve(AIM * self._measurement.target.ratio)
        wanted = curve.measured[0] if solved is None else solved
        if low > wanted and curve.predict(low) > self._measurement.target.ratio:
            raise TuneError(
                f"too slow by construction: with these settings {candidate.name} keeps {low:.3g} of the tokens at "
                f"least, and {wanted:.3g} is the most predicted to meet the target"
            )
        return round_down(min(wanted, high, retention_window(candidate)[1]), low)

    def settle(self, candidate: Candidate) -> Candidate:
        """Solve a composition once more, after timing it shortly: what its stages cost, no other policy's curve knows.

        Only where its stages were never timed together, and where retention is solved.

        Raises:
            TuneError: as a call does.
        """
        policy = candidate.policy
        solved = candidate.base == COMPOSED and candidate.searched_ratio is None and has_free_retention(policy)
        if not solved or self._curve(COMPOSED, policy.name).points:
            return candidate
        for _ in range(ROUNDS):
            before = policy.retention_ratio
            assert before is not None
            latency = self._measurement.timer.measure(policy, self._measurement.timings.quick)
            self.learn(COMPOSED, policy, latency)
            policy = policy.with_(retention_ratio=self(COMPOSED, policy))
            if abs((policy.retention_ratio or before) / before - 1) <= SETTLED:
                break
        return replace(candidate, policy=policy)

    def learn(self, base: str, candidate: Policy, latency: Latency) -> None:
        """Add a timed candidate to its curve."""
        if candidate.retention_ratio is None or not has_free_retention(candidate):
            return
        half_width = (latency.ratio.high - latency.ratio.low) / 2
        self._curve(base, candidate.name).add(candidate.retention_ratio, latency.ratio.value, half_width)

    def _curve(self, base: str, name: str) -> RetentionCurve:
        """Return the curve of a policy, made like its base's if it has none."""
        curves = self._measurement.curves
        if name not in curves and name != base and base in curves:
            curves[name] = RetentionCurve(like=curves[base])
        return curves.setdefault(name, RetentionCurve())
