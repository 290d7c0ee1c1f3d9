"""A model that is not there: latency and accuracy by formula, so that the best policy is known."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch

from vidsieve import Keep, Scores, Stage, VideoTokens, hookimpl, tunable
from vidsieve.framework.composition import BoundStage
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoShape
from vidsieve.framework.task import Example, Outcome


class FakeScore(Stage):
    """A scorer with one setting of each kind."""

    power: float = tunable(1.0, low=0.5, high=2.0)
    window: int = tunable(4, low=1, high=8)
    mode: Literal["near", "far"] = tunable("near")
    centred: bool = tunable(False)
    untouched: float = 3.0

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        return Scores(tokens.features.float().norm(dim=-1) ** self.power)


class FakeTop(Stage):
    """Keeps the best; its count is solved for the ratio asked."""

    reads = ("scores",)

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        return Keep(torch.ones_like(tokens.keep))


STAGES: dict[str, type[Stage]] = {"fake.score": FakeScore, "fake.top": FakeTop}


def fake_policy(name: str, retention_ratio: float = 0.3, search: Mapping[str, object] | None = None) -> Policy:
    stages = (BoundStage("fake.score", "fake.score", FakeScore()), BoundStage("fake.top", "fake.top", FakeTop()))
    return Policy(name=name, retention_ratio=retention_ratio, stages=stages, search=dict(search or {}))


class FakeBench:
    """Latency: `fixed_ms + full_ms * retention` plus what the policy costs, times noise. Accuracy: see `quality`.

    Example i is answered right when its difficulty (spread evenly over 0 to 1) is below the quality of the policy.
    """

    shape = VideoShape(frames=8, tokens=16)
    offers: frozenset[str] = frozenset()
    clips = 8
    smaller: frozenset[str] = frozenset()

    def __init__(
        self,
        quality: Callable[[Policy], float],
        *,
        full: float = 0.9,
        fixed_ms: float = 50.0,
        full_ms: float = 450.0,
        cost_ms: Mapping[str, float] | None = None,
        noise: float = 0.0,
        p_gold: bool = True,
        seed: int = 0,
    ) -> None:
        self.quality, self.full = quality, full
        self.fixed_ms, self.full_ms, self.cost_ms = fixed_ms, full_ms, dict(cost_ms or {})
        self.noise, self.with_p_gold = noise, p_gold
        self.rng = np.random.default_rng(seed)
        self.timed_calls: list[tuple[str, int]] = []
        self.scored: list[tuple[str, str]] = []

    def describe(self) -> Mapping[str, str]:
        return {"model": "fake", "checkpoint": "none", "revision": "0", "device": "cpu", "frames": "8", "torch": "0"}

    def clip_shape(self, clip_index: int) -> int:
        return clip_index % 2

    def renew(self) -> bool:
        return False

    def true_ms(self, policy: Policy | None) -> float:
        if policy is None:
            return self.fixed_ms + self.full_ms
        return self.fixed_ms + self.cost_ms.get(policy.name, 5.0) + self.full_ms * (policy.retention_ratio or 1.0)

    def timed(self, policy: Policy | None, clip_index: int, metric: str) -> Mapping[str, float]:
        self.timed_calls.append((policy.name if policy else "", clip_index))
        ms = self.true_ms(policy) * math.exp(self.noise * self.rng.standard_normal())
        return {f"{metric}_ms": ms, "prefill_ms": ms / 2}

    def score(self, policy: Policy | None, examples: Sequence[Example]) -> Iterator[Outcome]:
        quality = self.full if policy is None else self.quality(policy)
        for example in examples:
            self.scored.append((policy.name if policy else "", example.id))
            difficulty = float(example.question)
            p_gold = 1 / (1 + math.exp(-12 * (quality - difficulty)))
            yield Outcome(
                example_id=example.id,
                group=example.group,
                correct=float(difficulty < quality),
                prediction="a",
                p_gold=p_gold if self.with_p_gold else None,
                retention_ratio=policy.retention_ratio if policy else 1.0,
            )


class FakeTask:
    """Examples of even difficulty, two to a video, no video in two splits."""

    name = "fake"

    def __init__(self, metric: Literal["accuracy", "agreement"] = "accuracy", available: int = 10_000) -> None:
        self.metric: Literal["accuracy", "agreement"] = metric
        self.available = available

    def examples(self, split: str, count: int, *, seed: int = 0) -> Sequence[Example]:
        count = min(count, self.available)
        rng = np.random.default_rng([seed, len(split)])
        difficulty = (rng.permutation(count) + 0.5) / max(count, 1)
        return [
            Example(
                id=f"{split}-{i}",
                group=f"{split}-video-{i // 2}",
                question=str(difficulty[i]),
                answer="a" if self.metric == "accuracy" else None,
            )
            for i in range(count)
        ]

    def describe(self) -> dict[str, str]:
        return {"name": self.name, "sha256": "0"}
