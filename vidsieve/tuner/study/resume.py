"""Compare two searches field by field before a study is resumed, and cache outcomes in it."""

import hashlib
import importlib.metadata
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vidsieve.framework.errors import DataError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.stage import Stage
from vidsieve.framework.task import Example, Outcome, Task
from vidsieve.tuner.examples import Data, digests, ids_hash, list_name, remaining_examples
from vidsieve.tuner.measure.measurement import Measurement
from vidsieve.tuner.protocol import Bench, Intervention
from vidsieve.tuner.space.grammar import Grammar
from vidsieve.tuner.study.record import outcomes_from_json, outcomes_to_json
from vidsieve.tuner.study.store import Study, StudyMismatchError

STUDY_FORMAT = 2


def fingerprint(
    measurement: Measurement, data: Data, policies: Sequence[Policy], grammar: Grammar | None = None
) -> dict[str, str]:
    """State model, machine, data, target and policies as flat text; budgets (trials, patience, time) are left out.

    Where compositions are searched, each stage that may take part is stated too.
    """
    request = measurement.request
    target = f"{request.latency_ms:g} ms" if request.latency_ms is not None else f"{request.speedup:g} times faster"
    fields = {
        "study format": str(STUDY_FORMAT),
        "optuna major": importlib.metadata.version("optuna").split(".")[0],
        "target": f"{target} ({request.metric})",
        "max drop (points)": f"{request.max_drop_points:g}",
        "seed": str(request.seed),
        "data seed": str(request.data_seed),
        "examples asked": f"{request.examples}, {request.rerank_count}, {request.heldout_count}",
    }
    fields |= {f"model: {name}": value for name, value in measurement.bench.describe().items()}
    fields |= {f"data: {name}": value for name, value in data.task.items()}
    for split, examples in data.splits.items():
        fields[f"data: {split} examples"] = f"{len(examples)}, {ids_hash([e.id for e in examples])[:16]}"
    for policy in policies:
        fields[f"policy: {policy.name}"] = " ".join([policy.hash, *_foreign_code(b.stage for b in policy.stages)])
    if grammar is not None:
        fields["compositions"] = str(grammar.count())
        for name, digest in grammar.declarations().items():
            fields[f"stage: {name}"] = " ".join([digest, *_foreign_code([grammar.stages[name]])])
    return fields


def _foreign_code(stages: Iterable[Stage]) -> list[str]:
    """Hash the files of stages outside the package: their code is no part of the policy's hash."""
    foreign = {type(stage) for stage in stages if not type(stage).__module__.startswith("vidsieve.")}
    return sorted({_source(stage) for stage in foreign})


def _source(stage: type[Stage]) -> str:
    try:
        return hashlib.sha256(Path(inspect.getfile(stage)).read_bytes()).hexdigest()[:12]
    except (OSError, TypeError):
        return stage.__qualname__


def claim(
    study: Study,
    measurement: Measurement,
    task: Task,
    data: Data,
    policies: Sequence[Policy],
    grammar: Grammar | None = None,
) -> Data:
    """Make `study` the study of this search, or check that it is, and return the examples that it continues with.

    With `skip_bad` a study continues where the data alone differs, by examples taken away: those it had and that are
    still there keep their splits, and nothing takes the place of the others.

    Raises:
        StudyMismatchError: the study belongs to another search.
        DataError: too few examples are left.
        TuneError: as `Study.claim` does.
    """
    request = measurement.request
    try:
        study.claim(fingerprint(measurement, data, policies, grammar))
    except StudyMismatchError as mismatch:
        kept = study.example_digests()
        if kept is None or study.shared or not all(field.startswith("  data: ") for field in mismatch.fields):
            raise
        try:
            left = remaining_examples(task, request, kept)
        except DataError:
            raise mismatch from None
        if not request.skip_bad:
            raise StudyMismatchError(study.place, mismatch.fields, _gone(kept, left) or "all of them") from None
        study.claim(fingerprint(measurement, left, policies, grammar), anew=True)
        if gone := _gone(kept, left):
            measurement.warn(f"the data lost files since the search began: {gone}")
        data = left
    study.keep_examples({split: digests(examples) for split, examples in data.splits.items()})
    return data


def _gone(kept: Mapping[str, Sequence[str]], left: Data) -> str:
    """Say how many examples of each split are missing; empty if none."""
    counts = {split: (len(names), len(names) - len(left.splits[split])) for split, names in kept.items()}  # type: ignore[index]
    return ", ".join(f"{lost} of {of} {split} examples gone" for split, (of, lost) in counts.items() if lost)


LOOKS = "held-out looks"


class CachingBench:
    """A bench whose outcomes on whole splits are cached in the study.

    While it is `counting`, every policy scored on the `judging` examples is counted in `looks`, also across sessions.
    """

    def __init__(self, bench: Bench, study: Study, judging: Sequence[Example] = ()) -> None:
        self._bench, self._study = bench, study
        self._judging = list_name(digests(judging))
        self.counting = True

    @property
    def looks(self) -> list[str]:
        """Hashes of the policies that were scored on the judging examples."""
        return list(self._study.get(LOOKS) or [])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bench, name)

    def score(self, policy: Intervention | None, examples: Sequence[Example]) -> Iterator[Outcome]:
        """Score as the bench does, or yield the cached outcomes."""
        intervention = policy.hash if policy is not None else "uncompressed"
        names = digests(examples)
        split = list_name(names)
        if self.counting and policy is not None and split == self._judging and intervention not in self.looks:
            self._study.put(LOOKS, [*self.looks, intervention])
        key = f"outcomes {intervention} "
        stored = self._study.get(key + split)
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
            self._study.put(key + split, outcomes_to_json(outcomes))
