"""Score a policy on examples, paired with the uncompressed model, and stop when it is clearly worse."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from vidsieve.framework.errors import TuneError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.task import Example, Outcome
from vidsieve.tuner.protocol import Bench, Intervention

Scorer = Literal["p_gold", "correct"]
CHECKPOINTS = (0.2, 0.4, 0.6, 0.8)
ONE_SIDED_90 = 1.28
Step = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Score:
    """Outcomes in the order of the examples; fewer than all if `pruned`."""

    outcomes: tuple[Outcome, ...]
    scorer: Scorer
    pruned: bool = False

    @property
    def values(self) -> np.ndarray:
        """One number an example: p(gold) or 0/1."""
        return np.array([value_of(outcome, self.scorer) for outcome in self.outcomes])

    @property
    def mean(self) -> float:
        """Mean over the examples scored."""
        return float(self.values.mean())

    @property
    def accuracy(self) -> float:
        """Share correct (or in agreement) among the examples scored, whatever the scorer."""
        return float(np.mean([outcome.correct for outcome in self.outcomes]))

    def change(self, other: "Score") -> np.ndarray:
        """Compute paired differences to `other`, on the examples both have."""
        n = min(len(self.outcomes), len(other.outcomes))
        return self.values[:n] - other.values[:n]


def _shifted(step: Step, done: int, total: int, what: str, at: int, _: int) -> None:
    """Report progress in one part as progress in the whole."""
    step(what, done + at, total)


def value_of(outcome: Outcome, scorer: Scorer) -> float:
    """Return the number a scorer takes from an outcome."""
    return float(outcome.correct if outcome.p_gold is None or scorer == "correct" else outcome.p_gold)


def choose_scorer(outcomes: Sequence[Outcome]) -> Scorer:
    """Choose p(gold) if every outcome has one: it separates policies with far fewer examples than 0/1 does."""
    return "p_gold" if all(outcome.p_gold is not None for outcome in outcomes) else "correct"


def run_examples(
    bench: Bench, policy: Intervention | None, examples: Sequence[Example], what: str, step: Step
) -> tuple[Outcome, ...]:
    """Score `policy` on all `examples`.

    Raises:
        TuneError: the bench answered other examples than it was given, or with a number that is none.
    """
    outcomes: list[Outcome] = []
    for outcome in bench.score(policy, examples):
        outcomes.append(outcome)
        step(what, len(outcomes), len(examples))
    check_outcomes(examples, outcomes)
    return tuple(outcomes)


def check_outcomes(examples: Sequence[Example], outcomes: Sequence[Outcome]) -> None:
    """Refuse outcomes that do not answer the examples one for one. Raises TuneError."""
    wanted, came = [example.id for example in examples], [outcome.example_id for outcome in outcomes]
    if wanted != came:
        at = next((i for i, pair in enumerate(zip(wanted, came, strict=False)) if len(set(pair)) > 1), None)
        detail = f"{len(came)} outcomes" if at is None else f"{came[at]!r} in place of {wanted[at]!r}"
        raise TuneError(f"scoring: asked for {len(wanted)} examples in order, the bench gave {detail}.")
    for outcome in outcomes:
        numbers = [outcome.correct] if outcome.p_gold is None else [outcome.correct, outcome.p_gold]
        if not all(math.isfinite(number) and -1e-6 <= number <= 1 + 1e-6 for number in numbers):
            raise TuneError(f"scoring: example {outcome.example_id!r}: scores must be in [0, 1], got {numbers}.")


def race(
    bench: Bench,
    policy: Policy,
    examples: Sequence[Example],
    *,
    scorer: Scorer,
    rival: Score | None,
    margin: float,
    step: Step,
) -> Score:
    """Score `policy`, and stop at 20, 40, 60 or 80 % of the examples once it is clearly behind `rival` - `margin`.

    Clearly: the mean paired difference plus 1.28 standard errors lies below -margin (one-sided 90 %).
    """
    n = len(examples)
    ends = sorted({round(share * n) for share in CHECKPOINTS if round(share * n) >= 4}) if rival is not None else []
    outcomes: list[Outcome] = []
    for end in [*ends, n]:
        chunk = examples[len(outcomes) : end]
        done = len(outcomes)
        outcomes += run_examples(bench, policy, chunk, f"score {policy.name}", partial(_shifted, step, done, n))
        so_far = Score(tuple(outcomes), scorer, pruned=end < n)
        if rival is not None and end < n and _behind(so_far.change(rival), margin):
            return so_far
    return Score(tuple(outcomes), scorer)


def _behind(differences: np.ndarray, margin: float) -> bool:
    """Whether the mean difference is below -margin beyond the noise."""
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return float(differences.mean()) + ONE_SIDED_90 * error < -margin
