"""A registry of stages whose best composition is known, a bench that knows it, and a search over both."""

from collections.abc import Mapping
from typing import Any

import torch
from tuner.fake_bench import FakeBench, FakeScore, FakeTask, FakeTop, fake_policy

from vidsieve import Budget, Keep, KeepFrames, KeepKV, Scores, Segments, Stage, VideoTokens, hookimpl, tunable
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import DecodeStep, FrameBatch, LayerTokens
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.result import Listener, TuneResult
from vidsieve.tuner.space.grammar import Grammar
from vidsieve.tuner.tuning import tune


class Skip(Stage):
    """Skips frames."""

    solves = "keep_ratio"
    keep_ratio: float | None = tunable(None, low=0.1, high=1.0)

    def attainable(self, shape: Any) -> tuple[float, float]:
        return (0.1, 1.0) if self.keep_ratio is None else (self.keep_ratio,) * 2

    @hookimpl
    def reduce_frames(self, frames: FrameBatch) -> KeepFrames:
        raise AssertionError("the bench is fake")


class Cuts(Stage):
    """Cuts into segments."""

    @hookimpl
    def segment_frames(self, tokens: VideoTokens) -> Segments:
        return Segments(torch.zeros(tokens.keep.shape[0], dtype=torch.long))


class Share(Stage):
    """Shares tokens out."""

    sharpness: float = tunable(1.0, low=0.5, high=2.0)

    @hookimpl
    def budget_frames(self, tokens: VideoTokens) -> Budget:
        return Budget(torch.ones(tokens.keep.shape[0]))


class Planted(Stage):
    """Scores as only the test knows. Method of arXiv 2601.00001."""

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        return Scores(tokens.features.float().norm(dim=-1))


class ByScore(Stage):
    """Keeps the best within a budget. Method of https://arxiv.org/abs/2601.00002."""

    reads = ("scores",)
    reads_if_made = ("budget",)
    solves = "keep_ratio"
    keep_ratio: float | None = tunable(None, low=0.01, high=1.0)

    def attainable(self, shape: Any) -> tuple[float, float]:
        return (0.01, 1.0) if self.keep_ratio is None else (self.keep_ratio,) * 2

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        return Keep(torch.ones_like(tokens.keep))


class InSegments(Stage):
    """Keeps tokens by segment."""

    reads = ("segments",)

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        return Keep(torch.ones_like(tokens.keep))


class Inside(Stage):
    """Prunes inside the decoder."""

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return (0,)

    @hookimpl
    def prune_layer(self, tokens: LayerTokens) -> Scores:
        raise AssertionError("the bench is fake")


class Entries(Stage):
    """Chooses KV entries."""

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return (0,)

    @hookimpl
    def prune_kv(self, step: DecodeStep) -> KeepKV:
        raise AssertionError("the bench is fake")


STAGES: dict[str, type[Stage]] = {
    "fake.score": FakeScore,
    "fake.top": FakeTop,
    "test.skip": Skip,
    "test.cuts": Cuts,
    "test.share": Share,
    "planted.score": Planted,
    "test.top": ByScore,
    "test.in-segments": InSegments,
    "test.inside": Inside,
    "test.entries": Entries,
}
BEST = frozenset({"planted.score", "test.share", "test.top"})


def grammar(stages: Mapping[str, type[Stage]] | None = None, **options: Any) -> Grammar:
    published = [fake_policy("good"), fake_policy("bad")]
    options = {"published": published, "decode": False} | options
    return Grammar(STAGES if stages is None else stages, **options)


def uses(policy: Policy) -> frozenset[str]:
    return frozenset(bound.use for bound in policy.stages)


def quality(policy: Policy) -> float:
    """Published `good` loses 6 points and more with fewer tokens; each part of the planted best mends two of them."""
    lost = {"good": 0.06, "bad": 0.3, "random": 0.2, "uniform-frames": 0.25}.get(policy.name)
    if lost is None:
        lost = 0.06 - 0.02 * len(uses(policy) & BEST) + 0.04 * len(uses(policy) - BEST)
    return 0.9 - lost - 0.05 * (1 - (policy.retention_ratio or 1.0)) ** 2


def compose(
    bench: FakeBench,
    listener: Listener | None = None,
    *,
    compositions: Grammar | None = None,
    policies: list[Policy] | None = None,
    task: FakeTask | None = None,
    **options: Any,
) -> TuneResult:
    request = TuneRequest(**({"latency_ms": 200.0, "trials": 40, "patience": 40, "examples": 100} | options))
    return tune(
        bench,
        task or FakeTask(),
        request,
        policies=[fake_policy("good"), fake_policy("bad")] if policies is None else policies,
        controls=[fake_policy("random")],
        compositions=grammar() if compositions is None else compositions,
        listener=listener,
    )
