"""A bench and a task that answer from a recorded matrix: the tuner's own code searches, and no model runs."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from grid import RATIOS, anchors, cells, stages_key
from matrix import Matrix

from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoShape
from vidsieve.framework.task import SPLITS, Example, Outcome

SECONDS_AN_EXAMPLE = 0.03
BLOCK = 8
"""Pairs that were recorded one right after the other."""


class Truth:
    """What a matrix holds to be true: accuracy of every cell over all examples, latency by a model of recorded pairs.

    The model: latency ÷ uncompressed is what the family of the policy costs (a family is the list of stages without
    their settings) plus what the tokens that are left cost, a curve that all families share. `LatencyModel` fits both.
    """

    def __init__(self, matrix: Matrix, clock: str = "processor") -> None:
        self.matrix = matrix
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
        baseline_ms, policy_ms = matrix.pairs(clock)
        timed = [(family(cell.policy), cell.ratio) for cell in [*self.cells, *anchors(self.shape)]]
        self.latencies = LatencyModel(timed, policy_ms / baseline_ms)
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
        return self._between(stages_key(policy), policy.retention_ratio or 1.0)

    @lru_cache(maxsize=4096)  # noqa: B019  (a truth lives as long as its script)
    def _between(self, key: str, ratio: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        matrix, ratios = self.matrix, self.rows[key]
        asked = min(max(ratio, min(ratios)), max(ratios))
        low = max(each for each in ratios if each <= asked + 1e-9)
        high = min((each for each in ratios if each > low), default=low)
        share = (asked - low) / (high - low) if high > low else 0.0
        rows = np.where(self._luck < share, ratios[high], ratios[low])
        columns = np.arange(len(self._luck))
        return matrix.p_gold[rows, columns], matrix.correct[rows, columns], matrix.attained[rows, columns]

    def accuracy(self, policy: Policy | None) -> float:
        """Over the whole population."""
        return float(self.outcomes(policy)[1].mean())

    def latency(self, policy: Policy) -> float:
        """True latency ÷ uncompressed."""
        return self.latencies.at(family(policy), policy.retention_ratio or 1.0)

    def limit(self, policy: Policy, target_ratio: float) -> float | None:
        """The largest retention ratio that truly meets the target; None if none does."""
        low, high = policy.attainable(self.shape)
        if self.latencies.at(family(policy), low) > target_ratio:
            return None
        for _ in range(40):
            middle = (low + high) / 2
            fits = self.latencies.at(family(policy), middle) <= target_ratio
            low, high = (middle, high) if fits else (low, middle)
        return low

    def best(self, target_ratio: float, bases: Sequence[str]) -> tuple[Policy, float] | None:
        """The most accurate policy that truly meets the target, and its accuracy: all settings of `bases`, each at all
        recorded retention ratios within its limit and at the limit itself. None: nothing recorded does."""
        found: list[tuple[float, str, float]] = []
        for key, policy in self._families(tuple(bases)):
            limit = self.limit(policy, target_ratio)
            if limit is not None:
                recorded = [ratio for ratio in self.rows[key] if ratio <= limit]
                ends = [min(limit, RATIOS[-1])] if limit >= min(self.rows[key]) else []
                found += [(float(self._between(key, r)[1].mean()), key, r) for r in (*recorded, *ends)]
        if not found:
            return None
        accuracy, key, ratio = max(found)
        policy = dict(self._families(tuple(bases)))[key]
        return policy.with_(retention_ratio=ratio), accuracy

    @lru_cache(maxsize=8)  # noqa: B019
    def _families(self, bases: tuple[str, ...]) -> list[tuple[str, Policy]]:
        """Every way of settings once, with a policy that has them."""
        return list({stages_key(c.policy): c.policy for c in self.cells if c.base in bases}.items())


def family(policy: Policy) -> tuple[str, ...]:
    """The stages of a policy, without their settings."""
    return tuple(bound.use for bound in policy.stages)


class LatencyModel:
    """Fitted to the median of every timed configuration's pairs, weighted by their number.

    `curve` holds the coefficients of retention and its square, `costs` what each family adds; `residuals` are the
    pairs ÷ what the model says of them: the noise of a single pair.
    """

    def __init__(self, timed: Sequence[tuple[tuple[str, ...], float]], ratios: np.ndarray) -> None:
        names = list(dict.fromkeys(name for name, _ in timed))
        known = [(name, ratio, row[np.isfinite(row)]) for (name, ratio), row in zip(timed, ratios, strict=True)]
        known = [(name, ratio, pairs) for name, ratio, pairs in known if len(pairs)]
        design = np.array(
            [[ratio, ratio**2, *(name == each for each in names)] for name, ratio, _ in known], dtype=float
        )
        medians = np.array([np.median(pairs) for _, _, pairs in known])
        weight = np.sqrt([len(pairs) for _, _, pairs in known])
        found = np.linalg.lstsq(design * weight[:, None], medians * weight, rcond=None)[0]
        self.curve = (float(found[0]), float(found[1]))
        self.costs = dict(zip(names, map(float, found[2:]), strict=True))
        pooled = np.concatenate([pairs / self.at(name, ratio) for name, ratio, pairs in known])
        self.median_residual = float(np.median(pooled))
        self.residuals = pooled / self.median_residual

    def at(self, name: tuple[str, ...], ratio: float) -> float:
        """Latency ÷ uncompressed of a family at a retention ratio."""
        return self.costs[name] + self.curve[0] * ratio + self.curve[1] * ratio**2


class ReplayBench:
    """Implements the tuner's `Bench` over a matrix. `now_s` is the time that would have passed.

    `p_gold=False` withholds p(gold), so that the tuner has 0/1 alone. `noise` scales how far single pairs lie from the
    truth: 1 is as recorded. `scored` counts forward passes
    by split.
    """

    offers: frozenset[str] = frozenset()
    smaller: frozenset[str] = frozenset()
    clips = 8

    def __init__(self, truth: Truth, seed: int, *, p_gold: bool = True, noise: float = 1.0) -> None:
        self.truth, self.with_p_gold = truth, p_gold
        self._noise = truth.latencies.residuals**noise
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
        return self.truth.latency(policy) * float(self._noise[int(self._rng.random() * len(self._noise))])

    def _baseline_ms(self) -> float:
        """Uncompressed times in the order in which they were recorded, block after block."""
        if not self._baselines:
            self._baselines = list(self._rng.choice(self.truth.blocks))
        return float(self._baselines.pop())

    def score(self, policy: Policy | None, examples: Sequence[Example]) -> Iterator[Outcome]:
        """Mark the outcomes up."""
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
