"""Draw the compositions worth trying: Thompson sampling with a model in which each stage adds its own worth.

The model is a Bayesian linear one: the score of a policy is the mean of all plus the worth of each of its stages plus
what they do together, which is noise to it. Published policies that were tried teach it too. One worth is drawn for
each stage from what is known, and the best composition by these draws that was not tried is next: stages of good
policies come often, stages nobody tried come as well. A sampler that chooses part by part finds less: see
`scripts/experiments/structures.py`.
"""

import heapq
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidsieve.tuner.space.candidate import COMPOSED
from vidsieve.tuner.space.composed_space import ComposedSpace
from vidsieve.tuner.space.grammar import PARTS, Grammar, Skeleton
from vidsieve.tuner.study.record import TrialResult

STAGE_SHARE = 0.35
"""How far the worth of a stage scatters, as a share of how far scores do."""
TOGETHER_SHARE = 0.25
"""How far what stages do together scatters, as a share of how far scores do."""
LEAST_SPREAD = 0.005
BROKEN_WEIGHT = 10.0
"""What a broken accuracy constraint takes off a score, in parts of the score: a point of drop for a tenth of speed."""


class Proposals:
    """Proposes compositions that were not tried; what was proposed and never came to be tried counts as failed."""

    def __init__(self, composed: ComposedSpace, seed: int) -> None:
        self._composed, self._seed = composed, seed
        self._drawn: set[Skeleton] = set()
        self._unknown: dict[int, Skeleton] = {}

    def propose(self, number: int, trial_results: Sequence[TrialResult]) -> dict[str, Any] | None:
        """Fix the Optuna parameters of trial `number`; None where every composition was tried."""
        self._drawn.update(_skeletons(trial_results))
        seen = observations_of(trial_results)
        seen += [Observation(tuple(use for use in each if use is not None), None) for each in self._unknown.values()]
        rng = np.random.default_rng([self._seed, number])
        skeleton = draw(self._composed.grammar, seen, self._drawn, rng)
        if skeleton is None:
            return None
        self._drawn.add(skeleton)
        self._unknown[number] = skeleton
        return self._composed.fixed(skeleton)

    def refine(self, best: TrialResult | None) -> dict[str, Any] | None:
        """Fix the stages of the best trial, for other settings of them; None where it is no composition or has none."""
        if best is None or best.candidate is None or not self._composed.searchable(best.policy):
            return None
        return next((self._composed.fixed(each, searched=True) for each in _skeletons([best])), None)

    def suggested(self, number: int) -> None:
        """Note that trial `number` became a candidate."""
        self._unknown.pop(number, None)


def _skeletons(trial_results: Sequence[TrialResult]) -> Iterator[Skeleton]:
    """Give the compositions among trials."""
    for each in trial_results:
        if each.candidate is not None and each.candidate.base == COMPOSED:
            yield tuple(each.candidate.stages.get(part.name) for part in PARTS)


@dataclass(frozen=True)
class Observation:
    """What a policy of these stages scored; None where it failed or was too slow."""

    stages: tuple[str, ...]
    score: float | None


def observations_of(trial_results: Sequence[TrialResult]) -> list[Observation]:
    """Read what trials tell of stages, those of published policies and of compositions alike."""
    found = []
    for each in trial_results:
        if each.candidate is None:
            continue
        measured = each.score is not None and each.verdict not in ("failed", "too slow")
        broken = sum(max(0.0, amount) for amount in each.violation.values())
        score = each.value - BROKEN_WEIGHT * broken if measured else None
        found.append(Observation(tuple(bound.use for bound in each.policy.stages), score))
    return found


def draw(
    grammar: Grammar, observations: Sequence[Observation], tried: Collection[Skeleton], rng: np.random.Generator
) -> Skeleton | None:
    """Draw a composition that is not in `tried`; None where all are."""
    worth = _drawn_worth(list(grammar.stages), observations, rng)
    return next((each for each in best_first(grammar, worth) if each not in tried), None)


def _drawn_worth(
    names: Sequence[str], observations: Sequence[Observation], rng: np.random.Generator
) -> dict[str, float]:
    """Draw a worth for each stage, given what was observed.

    Linear regression with independent normal priors (Bishop, Pattern Recognition and Machine Learning, 3.3), in the
    form that inverts a matrix of observations: there are few.
    """
    scores = [each.score for each in observations if each.score is not None]
    spread = max(LEAST_SPREAD, float(np.std(scores))) if scores else 1.0
    worst = min(scores, default=0.0) - spread
    prior, noise = (STAGE_SHARE * spread) ** 2, (TOGETHER_SHARE * spread) ** 2
    has = np.array([[name in each.stages for name in names] for each in observations], dtype=np.float64)
    has = has.reshape(len(observations), len(names))
    values = np.array([worst if each.score is None else each.score for each in observations])
    gain = prior * has.T @ np.linalg.inv(prior * has @ has.T + noise * np.eye(len(observations)))
    mean = gain @ (values - values.mean()) if len(values) else np.zeros(len(names))
    covariance = prior * (np.eye(len(names)) - gain @ has)
    drawn = rng.multivariate_normal(mean, covariance, method="eigh")
    return dict(zip(names, drawn.tolist(), strict=True))


def best_first(grammar: Grammar, worth: Mapping[str, float]) -> Iterator[Skeleton]:
    """Yield the compositions in falling order of the summed worth of their stages; none is made before it is wanted."""
    ranked = {kind: sorted(names, key=lambda name: (-worth[name], name)) for kind, names in grammar.members.items()}
    streams = (
        _best_sums([[None] if kind is None else ranked[kind] for kind in kinds], worth) for kinds in grammar.fits
    )
    for _, skeleton in heapq.merge(*streams, key=lambda pair: pair[0]):
        if skeleton not in grammar.published:
            yield skeleton


def _best_sums(columns: Sequence[Sequence[str | None]], worth: Mapping[str, float]) -> Iterator[tuple[float, Skeleton]]:
    """Choose one of each column in every way, best sum first, as (-sum, chosen); each column is in falling order."""

    def entry(at: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        chosen = [column[index] for column, index in zip(columns, at, strict=True)]
        return -sum(worth[name] for name in chosen if name is not None), at

    heap = [entry((0,) * len(columns))]
    pushed = {heap[0][1]}
    while heap:
        value, at = heapq.heappop(heap)
        yield value, tuple(column[index] for column, index in zip(columns, at, strict=True))
        for place, column in enumerate(columns):
            following = (*at[:place], at[place] + 1, *at[place + 1 :])
            if following[place] < len(column) and following not in pushed:
                pushed.add(following)
                heapq.heappush(heap, entry(following))
