"""Steps 3 to 8 on one video: call the stages in order, check each plan, apply it, gather what is left."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from vidsieve.framework.calls import call
from vidsieve.framework.checks import (
    check_budget,
    check_keep,
    check_merge,
    check_scores,
    check_segments,
    check_type,
)
from vidsieve.framework.errors import PolicyError
from vidsieve.framework.hookspecs import REDUCING_HOOKS, VIDEO_HOOKS
from vidsieve.framework.plans import Budget, Keep, Merge, Scores, Segments, tokens_to_keep
from vidsieve.framework.policy import BoundStage, Policy
from vidsieve.framework.reconcile import reconcile
from vidsieve.framework.records import INPUTS, VideoShape, VideoTokens
from vidsieve.framework.report import Report, Stopwatch
from vidsieve.framework.solve import check_attainable, solved
from vidsieve.framework.stage import Stage


@dataclass(frozen=True, eq=False, kw_only=True)
class VideoInput:
    """The visual tokens of one video and what is known about it; see `Policy.plan` for the fields."""

    features: Float[Tensor, "frames tokens dim"]
    token_grid: tuple[int, int, int] | None = None
    timestamps_s: Float[Tensor, " frames"] | None = None
    question: Float[Tensor, "words dim"] | None = None
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    frame_index: Int[Tensor, " frames"] | None = None
    layers: int = 1
    seed: int = 0
    video_index: int = 0


@dataclass(frozen=True, eq=False)
class _MergeStep:
    """A merge as a linear map: pairs and normalised coefficients; `mixed` marks rows with more than one source."""

    source: Int[Tensor, " pairs"]
    target: Int[Tensor, " pairs"]
    coefficient: Float[Tensor, " pairs"]
    mixed: Bool[Tensor, " all"]

    def apply(self, rows: Shaped[Tensor, "all ..."]) -> Shaped[Tensor, "all ..."]:
        """Weighted means at the targets, in float32; other rows pass bit by bit."""
        flat = rows.reshape(rows.shape[0], -1)
        summed = torch.zeros(flat.shape, dtype=torch.float32, device=rows.device)
        summed.index_add_(0, self.target, flat[self.source].float() * self.coefficient[:, None])
        return torch.where(self.mixed[:, None], summed.to(rows.dtype), flat).reshape(rows.shape)


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenPlan:
    """What stays of one video.

    `keep` marks kept tokens (for merges the targets), `index` their flat numbers in order, `features` their rows.
    `weight` counts the originals each stands for. `budget`, `scores` and `segments` are what is still alive after
    step 7, for layer stages. `report` says what was done.
    """

    keep: Bool[Tensor, "frames tokens"]
    index: Int[Tensor, " kept"]
    features: Float[Tensor, "kept dim"]
    weight: Float[Tensor, " kept"]
    report: Report
    budget: Budget | None = None
    scores: Scores | None = None
    segments: Segments | None = None
    merges: tuple[_MergeStep, ...] = ()

    def carry(self, rows: Shaped[Tensor, "all ..."]) -> Shaped[Tensor, "kept ..."]:
        """Apply the same drops and merges to any tensor with a row per original token (DeepStack, say)."""
        for merge in self.merges:
            rows = merge.apply(rows)
        return rows[self.index.to(rows.device)]


class _Video:
    """One video on its way through the stages."""

    def __init__(self, policy: Policy, video: VideoInput) -> None:
        self.policy, self.video = policy, video
        frames, tokens, _ = video.features.shape
        self.features = video.features
        device = video.features.device
        self.keep = torch.ones(frames, tokens, dtype=torch.bool, device=device)
        self.weight = torch.ones(frames, tokens, device=device)
        self.frame_index = torch.arange(frames, device=device) if video.frame_index is None else video.frame_index
        self.made: dict[str, Any] = {"budget": None, "scores": None, "segments": None}
        self.merges: list[_MergeStep] = []
        self.notes: list[str] = []
        self.reduced = False

    @property
    def shape(self) -> VideoShape:
        """Sizes with what is alive; reads the counts back only after something was dropped."""
        frames, tokens = self.keep.shape
        alive = tuple(self.keep.sum(dim=1).tolist()) if self.reduced else None
        return VideoShape(frames, tokens, self.video.layers, alive)

    def run(self) -> None:
        """Call every video hook of every stage, in order."""
        for position, bound in enumerate(self.policy.stages):
            for hook in bound.stage.hooks():
                if hook in VIDEO_HOOKS:
                    self.step(position, bound, hook)

    def step(self, position: int, bound: BoundStage, hook: str) -> None:
        """One hook of one stage: show, ask, check, apply."""
        closes = bound is self.policy.closer and hook == [h for h in bound.stage.hooks() if h in REDUCING_HOOKS][-1]
        stage, token_budget = self.closing(bound) if closes else (bound.stage, None)
        where = f"policy {self.policy.name!r}, stage {bound.label!r}, {hook}"
        plan = call(where, stage, hook, self.tokens(position, token_budget))
        check_type(where, hook, plan)
        self.apply(where, plan, token_budget)

    def closing(self, bound: BoundStage) -> tuple[Stage, int | None]:
        """The closer with its count solved, and the number of tokens to leave; its own rule stands if it is fixed."""
        ratio = self.policy.retention_ratio
        if bound.fixed or ratio is None:
            return bound.stage, None
        token_budget = tokens_to_keep(self.keep.numel(), ratio)
        shape = self.shape
        if shape.total < token_budget:
            self.notes.append(f"{shape.total} tokens reached {bound.label!r}, fewer than the {token_budget} asked for.")
            token_budget = shape.total
        return solved(bound, shape, token_budget) if bound.stage.solves else bound.stage, token_budget

    def tokens(self, position: int, token_budget: int | None) -> VideoTokens:
        """The record a stage is shown."""
        video = self.video
        return VideoTokens(
            features=self.features,
            keep=self.keep,
            weight=self.weight,
            frame_index=self.frame_index,
            rng=generator(video.seed, video.video_index, position),
            token_budget=token_budget,
            retention_ratio=self.policy.retention_ratio,
            token_grid=video.token_grid,
            timestamps_s=video.timestamps_s,
            question=video.question,
            signals=video.signals,
            **self.made,
        )

    def apply(self, where: str, plan: object, token_budget: int | None) -> None:
        """Check a plan's content and act on it."""
        if isinstance(plan, Segments):
            check_segments(where, plan, self.keep.shape[0], self.keep)
            self.made["segments"] = plan
        elif isinstance(plan, Budget):
            check_budget(where, plan, self.keep.shape[0], self.keep, exact=self.policy.exact)
            self.made["budget"] = plan
        elif isinstance(plan, Scores):
            check_scores(where, plan, self.keep)
            # dead tokens may hold anything, NaN too: no later stage shall see it
            self.made["scores"] = Scores(plan.values.masked_fill(~self.keep, -torch.inf))
        elif isinstance(plan, Keep):
            check_keep(where, plan, self.keep)
            if token_budget is not None and self.policy.exact:
                self.keep = reconcile(where, plan, self.keep, token_budget)
            else:
                self.keep = plan.mask
            self.spend()
        elif isinstance(plan, Merge):
            check_merge(where, plan, self.keep)
            self.melt(plan)
            self.spend()

    def spend(self) -> None:
        """A reduction uses up the budget and the scores."""
        self.made |= {"budget": None, "scores": None}
        self.reduced = True

    def melt(self, plan: Merge) -> None:
        """Weighted means at the targets; what is no target dies."""
        total = self.keep.numel()
        source, target = plan.source.long(), plan.target.long()
        brought = self.weight.flatten()[source] if plan.weight is None else plan.weight.float()
        mass = torch.zeros(total, device=self.keep.device).index_add_(0, target, brought)
        sources = torch.zeros(total, device=self.keep.device).index_add_(0, target, torch.ones_like(brought))
        step = _MergeStep(source, target, brought / mass[target], sources > 1)
        flat = self.features.flatten(0, 1)
        self.features = step.apply(flat).view_as(self.features)
        self.keep = (sources > 0).view_as(self.keep)
        self.weight = torch.where(self.keep, mass.view_as(self.weight), self.weight)
        self.merges.append(step)


def generator(seed: int, video_index: int, position: int) -> torch.Generator:
    """A CPU generator for one stage on one video: the same for the same three numbers, whatever the batch."""
    return torch.Generator().manual_seed((seed * 1_000_003 + video_index * 10_007 + position) % 2**63)


def plan_video(policy: Policy, video: VideoInput) -> TokenPlan:
    """Run steps 3 to 8 of `policy` on one video. Raises as `Policy.plan` does."""
    check_inputs(policy, video)
    frames, tokens, _ = video.features.shape
    check_attainable(policy, VideoShape(frames, tokens, video.layers))
    work = _Video(policy, video)
    with torch.no_grad(), Stopwatch(video.features.device) as watch:
        work.run()
        index = work.keep.flatten().nonzero().squeeze(1)
        features = work.features.flatten(0, 1)[index]
        weight = work.weight.flatten()[index]
    _refuse_silence(policy, work, index.numel())
    report = Report(
        policy_name=policy.name,
        policy_hash=policy.hash,
        requested_ratio=policy.retention_ratio,
        keeps=(work.keep,),
        not_run=tuple(bound.label for bound in policy.stages if not bound.runs(*VIDEO_HOOKS)),
        notes=tuple(work.notes),
        stopwatches=(watch,),
    )
    return TokenPlan(
        keep=work.keep,
        index=index,
        features=features,
        weight=weight,
        report=report,
        merges=tuple(work.merges),
        **work.made,
    )


def check_inputs(policy: Policy, video: VideoInput) -> None:
    """Every input a stage needs must be there; a missing one is an error naming stage and argument."""
    if video.features.dim() != 3 or video.features.numel() == 0:
        raise PolicyError(
            f"policy {policy.name!r}: features must be (frames, tokens, dim) and not empty, got "
            f"{tuple(video.features.shape)}."
        )
    given = {name for name in INPUTS if getattr(video, name) is not None} | set(video.signals)
    for bound in policy.video_stages:
        for name in sorted(bound.stage.needs() - given):
            how = f"{name}=..." if name in INPUTS else f"signals={{{name!r}: ...}}"
            raise PolicyError(
                f"policy {policy.name!r}, stage {bound.label!r}: needs {name}, which was not given. Pass {how}; inside "
                "a model, the adapter of that model family has to offer it."
            )


def _refuse_silence(policy: Policy, work: _Video, kept: int) -> None:
    """Silent no-ops are this field's commonest bug: nothing removed though something should have been."""
    total = work.keep.numel()
    closer, ratio = policy.closer, policy.retention_ratio
    if kept < total or closer is None or closer.runs("prune_layer"):
        return
    if ratio is not None:
        expected = tokens_to_keep(total, ratio)
    else:
        low, high = policy.attainable(replace(work.shape, alive=None))
        expected = round(high * total) if high == low else total
    if expected >= total:
        return
    text = f"policy {policy.name!r}: should have left {expected} of {total} visual tokens, but removed none."
    if any(bound.stage.data_dependent for bound in policy.video_stages):
        warnings.warn(text, stacklevel=3)
        return
    raise PolicyError(f"{text} Check the stages' settings.")
