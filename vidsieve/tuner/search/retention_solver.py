"""Retention of each candidate: the largest predicted to meet the target, by all that was timed until then."""

from vidsieve.framework.errors import TuneError
from vidsieve.framework.policy.policy import Policy
from vidsieve.tuner.measure.latency import Latency
from vidsieve.tuner.measure.measurement import Measurement
from vidsieve.tuner.measure.retention_curve import RetentionCurve
from vidsieve.tuner.measure.retention_limits import AIM, round_down
from vidsieve.tuner.space.knobs import has_free_retention, retention_window


class RetentionSolver:
    """Solves candidates by the curves of the lab, and lets these learn from every candidate that was timed.

    A variant (a policy of another name, with a stage switched off or exchanged) has a curve of its own, of the shape of
    the published policy's. Settings shift latency too, but less than noise does as a rule: they share a curve.
    """

    def __init__(self, measurement: Measurement) -> None:
        self._lab = measurement

    def __call__(self, base: str, candidate: Policy) -> float:
        """The retention ratio for `candidate`, a variant of the policy named `base`.

        Raises:
            TuneError: with these settings even the fewest tokens it can keep are predicted to miss the target.
        """
        low, high = candidate.attainable(self._lab.bench.shape)
        curve = self._curve(base, candidate.name)
        solved = curve.solve(AIM * self._lab.target.ratio)
        wanted = curve.measured[0] if solved is None else solved
        if low > wanted and curve.predict(low) > self._lab.target.ratio:
            raise TuneError(
                f"too slow by construction: with these settings {candidate.name} keeps {low:.3g} of the tokens at "
                f"least, and {wanted:.3g} is the most predicted to meet the target"
            )
        return round_down(min(wanted, high, retention_window(candidate)[1]), low)

    def learn(self, base: str, candidate: Policy, latency: Latency) -> None:
        """Let later candidates be solved with what this one took."""
        if candidate.retention_ratio is None or not has_free_retention(candidate):
            return
        half_width = (latency.ratio.high - latency.ratio.low) / 2
        self._curve(base, candidate.name).add(candidate.retention_ratio, latency.ratio.value, half_width)

    def _curve(self, base: str, name: str) -> RetentionCurve:
        """The curve of a policy, made like its base's if it has none."""
        curves = self._lab.curves
        if name not in curves and name != base and base in curves:
            curves[name] = RetentionCurve(like=curves[base])
        return curves.setdefault(name, RetentionCurve())
