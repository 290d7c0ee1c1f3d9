"""Stages made for the tests of the framework, and short ways to build what they run in."""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from vidsieve.framework.composition import BoundStage
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Budget, Keep, Scores, Segments, apportion, tokens_to_keep
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoShape, VideoTokens
from vidsieve.framework.stage import Stage, tunable

T = TypeVar("T")


class Norm(Stage):
    """Scores by the first channel of the features, so that tests can write scores down."""

    sign: float = tunable(1.0, low=-2.0, high=2.0)

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        return Scores(tokens.features[..., 0].float() * self.sign)


class Even(Stage):
    """The same share for every frame."""

    @hookimpl
    def budget_frames(self, tokens: VideoTokens) -> Budget:
        return Budget(share=torch.ones(tokens.keep.shape[0]))


class Pairs(Stage):
    """Frames two by two."""

    @hookimpl
    def segment_frames(self, tokens: VideoTokens) -> Segments:
        return Segments(torch.arange(tokens.keep.shape[0]) // 2)


class Best(Stage):
    """The highest scores, over the video or by a budget's shares."""

    reads = ("scores",)
    reads_if_made = ("budget", "segments")
    solves = "keep_ratio"

    keep_ratio: float | None = tunable(None, low=0.01, high=1.0)

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        if self.keep_ratio is None:
            return (1 / shape.total, 1.0)
        return (tokens_to_keep(shape.total, self.keep_ratio) / shape.total,) * 2

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        assert tokens.scores is not None
        values = tokens.scores.values
        total = tokens.token_budget
        if total is None:
            total = tokens_to_keep(int(tokens.keep.sum()), self.keep_ratio or 1.0)
        if tokens.budget is None:
            order = values.flatten().argsort(descending=True, stable=True)
            mask = torch.zeros(values.numel(), dtype=torch.bool)
            mask[order[:total]] = True
            return Keep(mask.view_as(values) & tokens.keep, scores=values)
        assert tokens.budget.share is not None
        counts = apportion(tokens.budget.share.double(), total, tokens.keep.sum(dim=1))
        rank = values.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return Keep((rank < counts[:, None]) & tokens.keep, scores=values)


class Window(Stage):
    """Frame 0 whole, of every other frame the first `int((1 - drop_ratio) * n)` tokens; ignores any token budget."""

    solves = "drop_ratio"

    drop_ratio: float | None = tunable(None, low=0.0, high=1.0)

    def counts(self, shape: VideoShape, drop: float) -> list[int]:
        return [n if frame == 0 else int((1 - drop) * n) for frame, n in enumerate(shape.per_frame)]

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        ends = (1.0, 0.0) if self.drop_ratio is None else (self.drop_ratio, self.drop_ratio)
        low, high = (sum(self.counts(shape, drop)) / shape.total for drop in ends)
        return (low, high)

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        assert self.drop_ratio is not None, "the core solves it"
        frames, width = tokens.keep.shape
        alive = tuple(tokens.keep.sum(dim=1).tolist())
        counts = torch.tensor(self.counts(VideoShape(frames, width, alive=alive), self.drop_ratio))
        rank = tokens.keep.cumsum(dim=1) - 1
        mask = (rank < counts[:, None]) & tokens.keep
        first = torch.zeros_like(mask)
        first[0] = mask[0]
        return Keep(mask, protected=first)


class Answer(Stage):
    """A stage that answers with whatever `answers` holds under the hook's name; the tests' stage of all trades."""

    answers: ClassVar[dict[str, Any]] = {}

    def _of(self, hook: str, record: Any) -> Any:
        answer = self.answers[hook]
        return answer(record) if callable(answer) else answer


def answering(**answers: Any) -> Stage:
    """A stage with these hooks, each giving a fixed plan or calling a function of its record."""

    def method(hook: str, argument: str) -> Callable[..., Any]:
        source = f"def {hook}(self, {argument}):\n    return self._of({hook!r}, {argument})"
        scope: dict[str, Any] = {}
        exec(source, scope)
        return hookimpl(scope[hook])

    arguments = {"reduce_frames": "frames", "prune_kv": "step"}
    special = {name: answers.pop(name) for name in [*answers] if name in SPECIAL}
    body = {hook: method(hook, arguments.get(hook, "tokens")) for hook in answers}
    body |= {name: value if name in PLAIN else _constant(value) for name, value in special.items()}
    annotations = {"answers": ClassVar[dict[str, Any]], **{name: ClassVar[Any] for name in PLAIN if name in special}}
    body |= {"answers": answers, "__annotations__": annotations, "__module__": __name__}
    return type("Answering", (Answer,), body)()


PLAIN = ("reads", "reads_if_made", "data_dependent")
SPECIAL = (*PLAIN, "needs", "wants", "layers", "attainable")


def _constant(value: Any) -> Callable[..., Any]:
    return lambda self, *_: value


def bind(*stages: Stage | tuple[str, Stage]) -> tuple[BoundStage, ...]:
    """Stages with labels: the class name in lower case, or the name given with them."""
    named = [stage if isinstance(stage, tuple) else (type(stage).__name__.lower(), stage) for stage in stages]
    return tuple(BoundStage(label, label, stage) for label, stage in named)


def policy(*stages: Stage | tuple[str, Stage], ratio: float | None = None, **fields: Any) -> Policy:
    """A policy of these stages."""
    return Policy(name="test", retention_ratio=ratio, stages=bind(*stages), **fields)


def forge(record: type[T], **fields: Any) -> T:
    """A record that the type checker of the tests has not seen, as a stage outside the tests could return it."""
    made = object.__new__(record)
    for name in record.__dataclass_fields__:  # type: ignore[attr-defined]
        object.__setattr__(made, name, fields.get(name))
    return made


def ramp(frames: int, tokens: int, dim: int = 4) -> Float[Tensor, "frames tokens dim"]:
    """Features whose first channel counts 0, 1, 2, … over the video, the rest noise."""
    features = torch.randn(frames, tokens, dim)
    features[..., 0] = torch.arange(frames * tokens).view(frames, tokens)
    return features
