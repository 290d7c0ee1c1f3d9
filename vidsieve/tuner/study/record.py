"""Outcomes and findings as JSON, exact to the last digit, so that a resumed search goes on from the same numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from vidsieve.framework.task import Example, Outcome
from vidsieve.tuner.examples import LEAST, digests
from vidsieve.tuner.judge.scoring import Score
from vidsieve.tuner.measure.latency import Latency
from vidsieve.tuner.search.trial import TrialResult
from vidsieve.tuner.space.search_space import Candidate

LATENCY = TypeAdapter(Latency)


def outcomes_to_json(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The numbers of `outcomes`, column by column; examples are known by their order."""
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
    """Everything about a finding but its parameters, which the trial itself holds."""
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
