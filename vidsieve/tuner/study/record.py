"""`TrialResult`, and outcomes, trial results and bounds as JSON, exact to the last digit, for a resumed study."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from pydantic import TypeAdapter

from vidsieve.framework.errors import TuneError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.task import Example, Outcome
from vidsieve.tuner.examples import LEAST, digests
from vidsieve.tuner.measure.bounds import Explored
from vidsieve.tuner.measure.measurement import Measurement, Target
from vidsieve.tuner.measure.retention_curve import RetentionCurve
from vidsieve.tuner.measure.scoring import Score
from vidsieve.tuner.measured import Latency
from vidsieve.tuner.result import Bounds, Verdict
from vidsieve.tuner.space.candidate import Candidate
from vidsieve.tuner.space.composed_space import ComposedSpace, policy_of
from vidsieve.tuner.space.grammar import Grammar
from vidsieve.tuner.space.search_space import PolicySpace, Space
from vidsieve.tuner.statistics import Interval

LATENCY = TypeAdapter(Latency)
REPEATS = "same as trial"


@dataclass(frozen=True, eq=False, kw_only=True)
class TrialResult:
    """The result of one trial. `value` is what the study maximises, `violation` its constraints (positive: broken).

    `change` is the mean paired difference to the uncompressed model on the search examples, with its standard error.
    """

    number: int
    candidate: Candidate | None
    verdict: Verdict
    value: float
    violation: dict[str, float]
    latency: Latency | None = None
    score: Score | None = None
    change: float | None = None
    change_error: float | None = None
    reason: str = ""

    @property
    def feasible(self) -> bool:
        """Whether it may win: measured in full and no constraint broken."""
        complete = self.score is not None and not self.score.pruned
        return complete and all(amount <= 0 for amount in self.violation.values())

    @property
    def repeats(self) -> bool:
        """Whether it repeats an earlier trial and was not measured."""
        return self.reason.startswith(REPEATS)

    @property
    def policy(self) -> Policy:
        """The policy tried; only for a trial that got that far."""
        assert self.candidate is not None
        return self.candidate.policy


def outcomes_to_json(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the numbers of `outcomes`, column by column; examples are known by their order."""
    return {
        "correct": [outcome.correct for outcome in outcomes],
        "p_gold": [outcome.p_gold for outcome in outcomes],
        "retention_ratio": [outcome.retention_ratio for outcome in outcomes],
        "prediction": [outcome.prediction for outcome in outcomes],
    }


def outcomes_from_json(
    stored: Mapping[str, Any], examples: Sequence[Example], listed: Sequence[str] | None = None
) -> tuple[Outcome, ...]:
    """Rebuild the outcomes; they answer the first of `examples`.

    `listed` are the digests of the examples they were made on, where these are not `examples`: those that are no longer
    among `examples` are left out.
    """
    columns = (stored["correct"], stored["p_gold"], stored["retention_ratio"], stored["prediction"])
    if listed is not None:
        by_digest = dict(zip(digests(examples), examples, strict=True))
        rows = [row for row in zip(listed, *columns, strict=False) if row[0] in by_digest]
        examples = [by_digest[row[0]] for row in rows]
        columns = tuple([row[column] for row in rows] for column in range(1, 5))  # type: ignore[assignment]
    return tuple(
        Outcome(
            example_id=example.id,
            group=example.group,
            correct=correct,
            prediction=prediction,
            p_gold=p_gold,
            retention_ratio=ratio,
            kind=example.kind,
        )
        for example, correct, p_gold, ratio, prediction in zip(examples, *columns, strict=False)
    )


def trial_result_to_json(trial_result: TrialResult) -> dict[str, Any]:
    """Return everything of a trial result but its parameters, which the trial itself holds."""
    return {
        "number": trial_result.number,
        "verdict": trial_result.verdict,
        "reason": trial_result.reason,
        "value": trial_result.value,
        "violation": dict(trial_result.violation),
        "policy_hash": trial_result.candidate.policy.hash if trial_result.candidate else None,
        "retention_ratio": trial_result.candidate.policy.retention_ratio if trial_result.candidate else None,
        "latency": LATENCY.dump_python(trial_result.latency, mode="json") if trial_result.latency else None,
        "outcomes": outcomes_to_json(trial_result.score.outcomes) if trial_result.score else None,
        "scorer": trial_result.score.scorer if trial_result.score else None,
        "pruned": trial_result.score.pruned if trial_result.score else False,
        "change": trial_result.change,
        "change_error": trial_result.change_error,
    }


def trial_result_from_json(
    stored: Mapping[str, Any],
    candidate: Candidate | None,
    examples: Sequence[Example],
    listed: Sequence[str] | None = None,
) -> TrialResult:
    """Rebuild a result with the candidate that its trial's parameters make; `listed` as for `outcomes_from_json`."""
    score = None
    if stored["outcomes"] is not None:
        outcomes = outcomes_from_json(stored["outcomes"], examples, listed)
        if len(outcomes) >= LEAST:
            score = Score(outcomes, stored["scorer"], pruned=stored["pruned"])
    return TrialResult(
        number=stored["number"],
        candidate=candidate,
        verdict=stored["verdict"],
        value=stored["value"],
        violation=dict(stored["violation"]),
        latency=LATENCY.validate_python(stored["latency"]) if stored["latency"] else None,
        score=score,
        change=stored["change"],
        change_error=stored["change_error"],
        reason=stored["reason"],
    )


def explored_to_dict(measurement: Measurement, explored: Explored) -> dict[str, Any]:
    """Return bounds, space, floor and curves as JSON can hold them; every number in full."""
    bounds = explored.bounds
    plain = {field.name: getattr(bounds, field.name) for field in fields(bounds)}
    plain |= {"baseline": asdict(bounds.baseline), "floor": asdict(bounds.floor)}
    plain |= {"limits": dict(bounds.limits), "set_aside": dict(bounds.set_aside)}
    plain |= {"policies": list(bounds.policies), "warnings": list(bounds.warnings)}
    return {
        "bounds": plain,
        # a list: Optuna needs the policies in the very same order, and a mapping may come back sorted
        "space": [
            {
                "policy": name,
                "hash": entry.policy.hash,
                "retention": list(entry.retention) if entry.retention else None,
                "solved": entry.solved,
            }
            for name, entry in explored.space.entries.items()
        ],
        "composed": explored.space.composed.to_dict() if explored.space.composed is not None else None,
        "floor": {
            "policy": explored.floor.name,
            "retention_ratio": explored.floor.retention_ratio,
            "stages": [bound.use for bound in explored.floor.stages],
        },
        "target": asdict(measurement.target),
        "warnings": list(measurement.warnings),
        "curves": [
            {
                "name": name,
                "like": _name_of(curve.like, measurement.curves),
                "points": [list(point) for point in curve.points],
            }
            for name, curve in measurement.curves.items()
        ],
    }


def explored_from_dict(
    measurement: Measurement, policies: Sequence[Policy], data: Mapping[str, Any], grammar: Grammar | None = None
) -> Explored:
    """Rebuild `Explored`; sets the measurement's target, curves and warnings as they were.

    Raises:
        TuneError: a policy of the study is not among `policies`, or is another one under that name; the stages that it
            composes are not those of `grammar`.
    """
    composed = _composed(measurement, data.get("composed"), grammar)
    by_name = {policy.name: policy for policy in policies}
    entries = {}
    for entry in data["space"]:
        policy = _policy(by_name, entry["policy"])
        if policy.hash != entry["hash"]:
            raise TuneError(
                f"study: policy {policy.name!r} was {entry['hash']} when it was measured and is {policy.hash} now; "
                "start a new study."
            )
        retention = tuple(entry["retention"]) if entry["retention"] is not None else None
        entries[policy.name] = PolicySpace.of(
            policy, retention, solved=entry["solved"], bench=measurement.bench, metric=measurement.request.metric
        )
    floor = _floor(by_name, data["floor"], grammar)
    plain = dict(data["bounds"])
    plain |= {"baseline": Interval(**plain["baseline"]), "floor": Interval(**plain["floor"])}
    plain |= {"policies": tuple(plain["policies"]), "warnings": tuple(plain["warnings"])}
    measurement.set_target(Target(**data["target"]))
    measurement.warnings[:] = dict.fromkeys([*data["warnings"], *measurement.warnings])
    measurement.curves = _curves(data["curves"])
    return Explored(Bounds(**plain), Space(entries, composed), floor)


def _floor(by_name: Mapping[str, Policy], stored: Mapping[str, Any], grammar: Grammar | None) -> Policy:
    """Rebuild the policy that the floor was measured with; where none could be, it was a composition."""
    skeleton = None
    if grammar is not None and stored["policy"] not in by_name:
        skeleton = grammar.skeleton(stored["stages"])
    policy = _policy(by_name, stored["policy"]) if grammar is None or skeleton is None else policy_of(grammar, skeleton)
    return policy.with_(retention_ratio=stored["retention_ratio"])


def _composed(
    measurement: Measurement, stored: Mapping[str, Any] | None, grammar: Grammar | None
) -> ComposedSpace | None:
    """Rebuild the space of compositions; None where the search had none."""
    if stored is None:
        return None
    if grammar is None or grammar.declarations() != stored["stages"] or grammar.count() != stored["compositions"]:
        raise TuneError("study: it searches compositions of other stages than there are now; start a new study.")
    low, high = stored["retention_ratio"]
    bench = measurement.bench
    return ComposedSpace(grammar, (low, high), solved=stored["solved"], offers=bench.offers, shape=bench.shape)


def _policy(by_name: Mapping[str, Policy], name: str) -> Policy:
    if name not in by_name:
        raise TuneError(f"study: it searches policy {name!r}, which is not given now; start a new study.")
    return by_name[name]


def _curves(plain: Sequence[Mapping[str, Any]]) -> dict[str, RetentionCurve]:
    """Rebuild the curves; those like another are tied to it again."""
    curves = {each["name"]: RetentionCurve(each["points"]) for each in plain}
    for each in plain:
        if each["like"] is not None:
            curves[each["name"]].like = curves[each["like"]]
    return curves


def _name_of(curve: RetentionCurve | None, curves: Mapping[str, RetentionCurve]) -> str | None:
    return next((name for name, each in curves.items() if each is curve), None)
