"""Outcomes on a whole split are kept in the study, so that a resumed search does not score them a second time."""

from collections.abc import Iterator, Sequence
from typing import Any

from vidsieve.framework.task import Example, Outcome
from vidsieve.tuner.data import ids_hash
from vidsieve.tuner.protocol import Bench, Treatment
from vidsieve.tuner.study.record import outcomes_from_json, outcomes_to_json
from vidsieve.tuner.study.store import Study


class RememberingBench:
    """A bench that looks into the study before it scores, and writes there what it scored to the end."""

    def __init__(self, bench: Bench, study: Study) -> None:
        self._bench, self._study = bench, study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bench, name)

    def score(self, policy: Treatment | None, examples: Sequence[Example]) -> Iterator[Outcome]:
        """As the bench; outcomes known from before come at once."""
        treatment = policy.hash if policy is not None else "uncompressed"
        key = f"outcomes {treatment} {ids_hash([e.id for e in examples])[:16]}"
        stored = self._study.get(key)
        if stored is not None:
            yield from outcomes_from_json(stored, examples)
            return
        outcomes = []
        for outcome in self._bench.score(policy, examples):
            outcomes.append(outcome)
            yield outcome
        if len(outcomes) == len(examples):
            self._study.put(key, outcomes_to_json(outcomes))
