"""The laws of a stage, as tests to inherit.

class TestFeatureNorm(StageContract):
    def make_stage(self):
        return FeatureNorm()
"""

from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from typing import Any

import pytest
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vidsieve.framework.errors import RetentionError
from vidsieve.framework.hookspecs import REDUCING_HOOKS, VIDEO_HOOKS
from vidsieve.framework.planning.attainable import closing
from vidsieve.framework.planning.checks import call
from vidsieve.framework.planning.pipeline import reconcile
from vidsieve.framework.plans import Budget, Keep, Merge, Scores, Segments, tokens_to_keep
from vidsieve.framework.records import VideoShape, VideoTokens
from vidsieve.framework.stage import Stage
from vidsieve.testing.samples import made_signals, video_tokens


class StageContract:
    """Inherit, implement `make_stage`, and override `make_tokens` when the stage reads what others made."""

    shapes: tuple[tuple[int, int, int], ...] = ((1, 9, 8), (2, 4, 8), (6, 9, 16), (9, 16, 32))

    def make_stage(self) -> Stage:
        """A fresh stage with the settings to test."""
        raise TypeError(f"{type(self).__name__} must implement make_stage()")

    def make_tokens(self, frames: int, tokens: int, dim: int) -> VideoTokens:
        """What the stage is shown. By default scores, a budget and signals are there for stages that ask."""
        record = video_tokens(frames, tokens, dim)
        stage = self.make_stage()
        read = (*stage.reads, *stage.reads_if_made)
        rng = torch.Generator().manual_seed(7)
        if "scores" in read:
            record = replace(record, scores=Scores(torch.rand(frames, tokens, generator=rng)))
        if "budget" in read:
            record = replace(record, budget=Budget(share=torch.rand(frames, generator=rng)))
        if "segments" in read:
            record = replace(record, segments=Segments(labels=torch.arange(frames) // 2))
        signals = made_signals(stage.needs() | stage.wants(), frames, tokens)
        return replace(record, signals=signals, token_budget=self.token_budget(record), retention_ratio=0.5)

    def token_budget(self, record: VideoTokens) -> int | None:
        """Half of the tokens for a stage whose own setting does not fix the count."""
        stage = self.make_stage()
        fixed = stage.solves is not None and getattr(stage, stage.solves) is not None
        return None if fixed else tokens_to_keep(record.keep.numel(), 0.5)

    def plans(self, record: VideoTokens) -> list[tuple[str, Any]]:
        """What each video hook answers, fresh random numbers each time."""
        stage = self.make_stage()
        answers = []
        for hook in stage.hooks():
            if hook in VIDEO_HOOKS:
                answers.append((hook, call("contract", stage, hook, replace(record, rng=_fresh()), exact=False)))
        return answers

    def each(self) -> list[VideoTokens]:
        """A record per shape; skips stages that work elsewhere."""
        if not any(hook in VIDEO_HOOKS for hook in self.make_stage().hooks()):
            pytest.skip("this stage does not work on projected visual tokens")
        return [self.make_tokens(*shape) for shape in self.shapes]

    def test_plans_pass_the_door(self) -> None:
        for record in self.each():
            assert self.plans(record)  # each is checked when the stage is called

    def test_same_input_same_plan(self) -> None:
        for record in self.each():
            for (_, first), (_, second) in zip(self.plans(record), self.plans(record), strict=True):
                assert same(first, second)

    def test_input_is_left_alone(self) -> None:
        for record in self.each():
            features, keep = record.features.clone(), record.keep.clone()
            self.plans(record)
            assert torch.equal(record.features, features)
            assert torch.equal(record.keep, keep)

    def test_dead_tokens_have_no_influence(self) -> None:
        for record in self.each():
            keep = record.keep.clone()
            keep.view(-1)[::3] = False
            if not keep.any():
                continue
            budget = record.token_budget
            record = replace(record, keep=keep, token_budget=min(budget, int(keep.sum())) if budget else None)
            for poison in (float("nan"), float("inf"), 1e4):
                features = record.features.masked_fill(~keep[..., None], poison)
                signals = {name: values.clone() for name, values in record.signals.items()}
                for values in signals.values():
                    values[~keep] = poison
                poisoned_record = replace(record, features=features, signals=signals)
                for (_, clean), (_, poisoned) in zip(self.plans(record), self.plans(poisoned_record), strict=True):
                    assert same(clean, poisoned, alive=keep)

    def test_what_is_remembered_of_a_stream_does_not_grow(self) -> None:
        for record in self.each():
            for hook in (one for one in self.make_stage().hooks() if one in VIDEO_HOOKS):
                sizes, state = [], None
                for _ in range(4):
                    plan = call(
                        "contract", self.make_stage(), hook, replace(record, state=state, rng=_fresh()), exact=False
                    )
                    state = plan.state
                    sizes.append({name: value.shape for name, value in (state or {}).items()})
                assert sizes.count(sizes[0]) == len(sizes)

    def test_scores_do_not_depend_on_the_models_dtype(self) -> None:
        for record in self.each():
            half = replace(record, features=record.features.bfloat16())
            full = replace(record, features=record.features.bfloat16().float())
            for (_, first), (_, second) in zip(self.plans(half), self.plans(full), strict=True):
                assert same(first, second)

    def test_settings_declare_a_range(self) -> None:
        for name, info in type(self.make_stage()).settings().items():
            extra = info.json_schema_extra
            if not isinstance(extra, dict) or not extra.get("tunable") or extra.get("low") is None:
                continue
            assert extra["low"] < extra["high"], name  # type: ignore[operator]

    def test_attainable_is_a_range_of_shares(self) -> None:
        for frames, tokens, _ in self.shapes:
            low, high = self.make_stage().attainable(VideoShape(frames, tokens, 28))
            assert 0 <= low <= high <= 1

    def test_a_fixed_count_is_what_it_attains(self) -> None:
        stage = self.make_stage()
        if stage.solves is None or getattr(stage, stage.solves) is None:
            pytest.skip("no setting fixes the count of this stage")
        for record in self.each():
            frames, tokens = record.keep.shape
            low, high = stage.attainable(VideoShape(frames, tokens, 28))
            for _, plan in self.plans(record):
                left = tokens_left(plan)
                if left is not None and not stage.data_dependent:
                    assert low == high
                    assert left == round(low * record.keep.numel())

    def test_as_the_last_stage_it_leaves_what_is_asked(self) -> None:
        stage = self.make_stage()
        reducing = [hook for hook in stage.hooks() if hook in VIDEO_HOOKS and hook in REDUCING_HOOKS]
        if not reducing or stage.data_dependent:
            pytest.skip("this stage does not answer for a total")
        if stage.solves is not None:
            stage = stage.model_copy(update={stage.solves: None})
        for record in self.each():
            shape = VideoShape(*record.keep.shape)
            asked = tokens_to_keep(shape.total, 0.5)
            try:
                closer = closing("contract", stage, shape, asked)
            except RetentionError:
                continue
            plan = call("contract", closer, reducing[-1], replace(record, token_budget=asked))
            if isinstance(plan, Keep):
                assert int(reconcile("contract", plan, record.keep, asked).sum()) == asked
            else:  # a Merge is not mended
                assert tokens_left(plan) == asked

    def test_a_count_from_the_shape_does_not_depend_on_what_is_shown(self) -> None:
        stage = self.make_stage()
        reducing = [hook for hook in stage.hooks() if hook in VIDEO_HOOKS and hook in REDUCING_HOOKS]
        if not reducing or not stage.count_from_shape():
            pytest.skip("this stage does not promise a count")
        for record in self.each():
            counts = set()
            for features in hostile_features(record.features):
                same_shape = replace(record, features=features, rng=_fresh())
                counts.add(tokens_left(call("contract", stage, reducing[-1], same_shape, exact=False)))
            assert len(counts) == 1


def hostile_features(features: Float[Tensor, "frames tokens dim"]) -> Iterator[Float[Tensor, "frames tokens dim"]]:
    """Features of the same sizes that a careless count trips over: equal over time, over a frame, all zero, cut."""
    still, flat = features[:1].expand_as(features).clone(), features[:, :1].expand_as(features).clone()
    cut = still.clone()
    cut[len(cut) // 2 :] = features[-1]
    yield from (features, still, flat, cut, torch.ones_like(features), torch.zeros_like(features))


def tokens_left(plan: object) -> int | None:
    """How many tokens a Keep or a Merge leaves; None for other plans."""
    if isinstance(plan, Keep):
        return int(plan.mask.sum())
    return len(plan.target.unique()) if isinstance(plan, Merge) else None


def _fresh() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def same(first: object, second: object, alive: Bool[Tensor, "frames tokens"] | None = None) -> bool:
    """Whether two plans say the same; what they say of dead tokens does not count."""
    if type(first) is not type(second) or not is_dataclass(first):
        return first is second
    for name in vars(first):
        one, other = getattr(first, name), getattr(second, name)
        if isinstance(one, Tensor):
            if alive is not None and one.shape == alive.shape:
                one, other = one[alive], other[alive]
            if not torch.equal(one, other):
                return False
        elif isinstance(one, dict) and isinstance(other, dict):
            if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one):
                return False
        elif one != other:
            return False
    return True
