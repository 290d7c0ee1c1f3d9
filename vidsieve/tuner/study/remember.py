"""Keep the outcomes on a whole split in the study, so that a resumed search does not score them a second time."""

from collections.abc import Iterator, Sequence
from typing import Any

from vidsieve.framework.task import Example, Outcome
from vidsieve.tuner.examples import digests, list_name
from vidsieve.tuner.protocol import Bench, Intervention
from vidsieve.tuner.study.record import outcomes_from_json, outcomes_to_json
from vidsieve.tuner.study.store import Study

LOOKS = "held-out looks"


class RememberingBench:
    """A bench that looks into the study before it scores, and writes there what it scored to the end.

    While it is `counting`, every policy scored on the `judging` examples is a look at them, also across sessions.
    """

    def __init__(self, bench: Bench, study: Study, judging: Sequence[Example] = ()) -> None:
        self._bench, self._study = bench, study
        self._judging = list_name(digests(judging))
        self.counting = True

    @property
    def looks(self) -> list[str]:
        """The hashes of the policies that were scored on the judging examples."""
        return list(self._study.get(LOOKS) or [])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bench, name)

    def score(self, policy: Intervention | None, examples: Sequence[Example]) -> Iterator[Outcome]:
        """As the bench; outcomes known from before come at once."""
        intervention = policy.hash if policy is not None else "uncompressed"
        names = digests(examples)
        asked = list_name(names)
        if self.counting and policy is not None and asked == self._judging and intervention not in self.looks:
            self._study.put(LOOKS, [*self.looks, intervention])
        key = f"outcomes {intervention} "
        stored = self._study.get(key + asked)
        if stored is not None:
            yield from outcomes_from_json(stored, examples)
            return
        # an earlier session may have scored these among others, whose files have been taken away since
        for name, listed in self._study.example_lists().items():
            if set(names) <= set(listed) and (stored := self._study.get(key + name)) is not None:
                yield from outcomes_from_json(stored, examples, listed)
                return
        outcomes = []
        for outcome in self._bench.score(policy, examples):
            outcomes.append(outcome)
            yield outcome
        if len(outcomes) == len(examples):
            self._study.put(key + asked, outcomes_to_json(outcomes))
