"""A bench and a task that answer from a recorded matrix: the tuner's own code searches, and no model runs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from grid import RATIOS, anchors, cells, stages_key
from matrix import Matrix

from vidsieve.framework.policy import Policy
from vidsieve.framework.records import VideoShape
from vidsieve.framework.task import SPLITS, Example, Outcome
from vidsieve.tuner.curve import RetentionCurve

SECONDS_AN_EXAMPLE = 0.03
BLOCK = 8
"""Pairs that were recorded one right after the other."""


class Truth:
    """What a matrix holds to be true: accuracy of every cell over all examples, latency of every family of policies.

    A family is the list of stages without their settings. Settings hardly move the time (`settings_spread` says how
    far), so its pairs are pooled at each retention ratio. Its median is made monotone and joined by straight lines.
    """

    def __init__(self, matrix: Matrix, clock: str = "processor") -> None:
        self.matrix = matrix
        baseline_ms, policy_ms = matrix.pairs(clock)
        self.shape = VideoShape(len(matrix.header["shape"]), matrix.header["shape"][0], matrix.header["layers"])
        self.cells = list(cells(self.shape))
        stored = [(c["base"], c["settings"], c["ratio"]) for c in matrix.header["cells"]]
        if stored != [(c.base, c.settings, c.ratio) for c in self.cells]:
            raise ValueError("the matrix was made with another grid than the policy files here; collect it again")
        self.rows: dict[str, dict[float, int]] = {}
        for row, cell in enumerate(self.cells):
            self.rows.setdefault(stages_key(cell.policy), {})[cell.ratio] = row + 1
        count = matrix.correct.shape[1]
        self._luck = (np.random.default_rng(0).permutation(count) + 0.5) / count
        self.pools: dict[tuple[str, ...], dict[float, np.ndarray]] = {}
        for at, cell in enumerate([*self.cells, *anchors(self.shape)]):
            pairs = policy_ms[at] / baseline_ms[at]
            ratios = self.pools.setdefault(family(cell.policy), {})
            known = ratios.get(cell.ratio, np.empty(0))
            ratios[cell.ratio] = np.concatenate([known, pairs[np.isfinite(pairs)]])
        self._drawable: dict[str, np.ndarray] = {}
        self._outcomes: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self.medians = {name: _curve(ratios) for name, ratios in self.pools.items()}
        recorded = baseline_ms[np.isfinite(baseline_ms)]
        self.blocks = recorded[: len(recorded) // BLOCK * BLOCK].reshape(-1, BLOCK)

    def outcomes(self, policy: Policy | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(p(gold), correct, attained retention) of every example.

        Between two recorded retention ratios each example takes the outcome of one of the two; which, is fixed for the
        example, and the nearer a ratio is, the more examples take its outcome.

        Raises:
            KeyError: the settings are not on the grid.
        """
        matrix = self.matrix
        if policy is None:
            return matrix.p_gold[0], matrix.correct[0], matrix.attained[0]
        if policy.hash not in self._outcomes:
            self._outcomes[policy.hash] = self._between(policy)
        return self._outcomes[policy.hash]

    def _between(self, policy: Policy) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        matrix = self.matrix
        ratios = self.rows[stages_key(policy)]
        asked = min(max(policy.retention_ratio or 1.0, min(ratios)), max(ratios))
        low = max(ratio for ratio in ratios if ratio <= asked + 1e-9)
        high = min((ratio for ratio in ratios if ratio > low), default=low)
        share = (asked - low) / (high - low) if high > low else 0.0
        rows = np.where(self._luck < share, ratios[high], ratios[low])
        columns = np.arange(len(self._luck))
        return matrix.p_gold[rows, columns], matrix.correct[rows, columns], matrix.attained[rows, columns]

    def accuracy(self, policy: Policy | None) -> float:
        """Over the whole population."""
        return float(self.outcomes(policy)[1].mean())

    def latency(self, policy: Policy) -> float:
        """True latency ÷ uncompressed, between the recorded retention ratios by straight lines."""
        return self.medians[family(policy)].predict(policy.retention_ratio or 1.0)

    def drawable(self, policy: Policy) -> np.ndarray:
        """Latency ÷ uncompressed of recorded pairs at the nearest retention ratio, carried over to this one."""
        if policy.hash not in self._drawable:
            ratios = self.pools[family(policy)]
            asked = policy.retention_ratio or 1.0
            near = ratios[min(ratios, key=lambda each: abs(each - asked))]
            self._drawable[policy.hash] = near / np.median(near) * self.latency(policy)
        return self._drawable[policy.hash]

    def limit(self, policy: Policy, target_ratio: float) -> float | None:
        """The largest retention ratio that truly meets the target."""
        return self.medians[family(policy)].solve(target_ratio)

    def best(self, target_ratio: float, bases: Sequence[str]) -> tuple[Policy, float]:
        """The most accurate policy that truly meets the target, and its accuracy: all settings of `bases`, each at all
        recorded retention ratios within its limit and at the limit itself."""
        found: dict[str, tuple[float, Policy]] = {}
        for cell in self.cells:
            limit = self.limit(cell.policy, target_ratio) if cell.base in bases else None
            if limit is None:
                continue
            highest = cell.policy.attainable(self.shape)[1]
            for ratio in (cell.ratio, min(limit, highest, RATIOS[-1])):
                if self.reaches(cell.policy, ratio) and ratio <= limit + 1e-9:
                    policy = cell.policy.with_(retention_ratio=ratio)
                    found[policy.hash] = (self.accuracy(policy), policy)
        accuracy, policy = max(found.values(), key=lambda entry: entry[0])
        return policy, accuracy

    def reaches(self, policy: Policy, ratio: float) -> bool:
        """Whether outcomes were recorded at this retention ratio or below it."""
        return ratio >= min(self.rows[stages_key(policy)]) - 1e-9


def family(policy: Policy) -> tuple[str, ...]:
    """The stages of a policy, without their settings."""
    return tuple(bound.use for bound in policy.stages)


def _curve(ratios: Mapping[float, np.ndarray]) -> RetentionCurve:
    curve = RetentionCurve()
    for ratio, pairs in ratios.items():
        curve.add(ratio, float(np.median(pairs)))
    return curve


class ReplayBench:
    """Implements the tuner's `Bench` over a matrix. `now_s` is the time that would have passed.

    `p_gold=False` withholds p(gold), so that the tuner has 0/1 alone. `scored` counts forward passes
    by split.
    """

    offers: frozenset[str] = frozenset()
    smaller: frozenset[str] = frozenset()
    clips = 8

    def __init__(self, truth: Truth, seed: int, *, p_gold: bool = True) -> None:
        self.truth, self.with_p_gold = truth, p_gold
        self.shape = truth.shape
        self.now_s = 0.0
        self.scored = dict.fromkeys(SPLITS, 0)
        self.runs_timed = 0
        self._rng = np.random.default_rng([seed, 1])
        self._baselines: list[float] = []
        self._half: tuple[bool, float] | None = None

    def describe(self) -> Mapping[str, str]:
        """A replay has no device of its own."""
        return {"model": self.truth.matrix.header["model"], "device": "cpu", "replayed": "yes"}

    def clip_shape(self, clip_index: int) -> int:
        """All alike."""
        return 0

    def renew(self) -> bool:
        """There is no process to leave."""
        return False

    def timed(self, policy: Policy | None, clip_index: int, metric: str) -> Mapping[str, float]:
        """One side of a pair. Both sides share the uncompressed time; their ratio is that of a recorded pair."""
        side = policy is not None
        if self._half is not None and self._half[0] is not side:
            baseline_ms, self._half = self._half[1], None
        else:
            baseline_ms = self._baseline_ms()
            self._half = (side, baseline_ms)
        ms = baseline_ms if policy is None else baseline_ms * self._ratio(policy)
        self.now_s += ms / 1e3
        self.runs_timed += 1
        return {f"{metric}_ms": ms}

    def _ratio(self, policy: Policy) -> float:
        recorded = self.truth.drawable(policy)
        return float(recorded[int(self._rng.random() * len(recorded))])

    def _baseline_ms(self) -> float:
        """Uncompressed times in the order in which they were recorded, block after block."""
        if not self._baselines:
            self._baselines = list(self._rng.choice(self.truth.blocks))
        return float(self._baselines.pop())

    def score(self, policy: Policy | None, examples: Sequence[Example]) -> Iterator[Outcome]:
        """Look the outcomes up."""
        p_gold, correct, attained = self.truth.outcomes(policy)
        columns = [int(example.question) for example in examples]
        self.now_s += len(columns) * SECONDS_AN_EXAMPLE
        for example, column in zip(examples, columns, strict=True):
            self.scored[example.id.split("-")[0]] += 1  # type: ignore[index]
            yield Outcome(
                example_id=example.id,
                group=example.group,
                correct=float(correct[column]),
                prediction="",
                p_gold=float(p_gold[column]) if self.with_p_gold else None,
                retention_ratio=float(attained[column]),
                kind=example.kind,
            )


class ReplayTask:
    """Splits drawn from the population of a matrix, whole videos, with replacement: the population is the truth.

    Every draw counts as a video of its own, so a split of n videos is n independent draws from a distribution whose
    mean is known.
    """

    name = "replay"
    metric: Literal["accuracy", "agreement"] = "accuracy"

    def __init__(self, matrix: Matrix) -> None:
        self._examples = matrix.header["examples"]
        videos: dict[str, list[int]] = {}
        for column, example in enumerate(self._examples):
            videos.setdefault(example["group"], []).append(column)
        self.videos = list(videos.values())

    def examples(self, split: str, count: int, *, seed: int = 0) -> list[Example]:
        """`count` examples of videos drawn anew for every split and seed."""
        rng = np.random.default_rng([seed, SPLITS.index(split), 2])  # type: ignore[arg-type]
        drawn: list[Example] = []
        number = 0
        while len(drawn) < count:
            for column in self.videos[int(rng.integers(len(self.videos)))]:
                drawn.append(self._example(split, number, column))
            number += 1
        return drawn[:count]

    def _example(self, split: str, number: int, column: int) -> Example:
        return Example(
            id=f"{split}-{number}-{column}",
            group=f"{split}-{number}",
            question=str(column),
            answer="gold",
            kind=self._examples[column]["kind"],
        )

    def describe(self) -> dict[str, Any]:
        """For provenance."""
        return {"name": self.name}
