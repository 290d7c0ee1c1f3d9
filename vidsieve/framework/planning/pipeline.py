"""Steps 3 to 8 on one video: call the stages in order, check each plan, apply it, gather what is left."""

import hashlib
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from vidsieve.framework.composition import BoundStage, Composition
from vidsieve.framework.errors import InputError, PlanError, PolicyError
from vidsieve.framework.hookspecs import REDUCING_HOOKS, VIDEO_HOOKS
from vidsieve.framework.planning.attainable import check_attainable, closing
from vidsieve.framework.planning.checks import call
from vidsieve.framework.planning.inputs import StreamState, VideoInput, begin
from vidsieve.framework.plans import Budget, Keep, Merge, MergeStep, Scores, Segments, melt, tokens_to_keep
from vidsieve.framework.records import VideoShape, VideoTokens
from vidsieve.framework.report import Report, Stopwatch
from vidsieve.framework.stage import Stage
from vidsieve.framework.trace import VideoTrace


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenPlan:
    """What stays of one video.

    `keep` marks kept tokens (for merges the targets), `index` their flat numbers in order, `features` their rows.
    `weight` counts the originals each stands for. `budget`, `scores` and `segments` are what is still alive after
    step 7, for layer stages. `report` says what was done. `state` goes into the plan of the video's next chunk.
    """

    keep: Bool[Tensor, "frames tokens"]
    index: Int[Tensor, " kept"]
    features: Float[Tensor, "kept dim"]
    weight: Float[Tensor, " kept"]
    report: Report
    token_grid: tuple[int, int, int] | None = None
    """(t, h, w) of all the tokens there were."""
    budget: Budget | None = None
    scores: Scores | None = None
    segments: Segments | None = None
    merges: tuple[MergeStep, ...] = ()
    state: StreamState | None = None

    def carry(self, rows: Shaped[Tensor, "all ..."]) -> Shaped[Tensor, "kept ..."]:
        """Apply the same drops and merges to any tensor with a row per original token (DeepStack, say).

        Rows of whole numbers or flags (ids, positions) are not averaged: a merged token has those of its target.

        Raises:
            InputError: `rows` has not one row per original token.
        """
        if rows.shape[:1] != (self.keep.numel(),):
            raise InputError(
                f"carry: {self.keep.numel()} rows asked, one per original visual token, got shape {tuple(rows.shape)}."
            )
        for merge in self.merges if rows.is_floating_point() else ():
            rows = merge.apply(rows)
        return rows[self.index.to(rows.device)]


class _Video:
    """One video on its way through the stages."""

    def __init__(self, policy: Composition, video: VideoInput, past: StreamState) -> None:
        self.policy, self.video, self.past = policy, video, past
        frames, tokens, _ = video.features.shape
        self.features = video.features
        device = video.features.device
        living = video.living
        self.keep = torch.ones(frames, tokens, dtype=torch.bool, device=device) if living is None else living.to(device)
        self.weight = torch.ones(frames, tokens, device=device)
        self.frame_index = torch.arange(frames, device=device) if video.frame_index is None else video.frame_index
        self.made: dict[str, Any] = {"budget": None, "scores": None, "segments": None}
        self.last: dict[str, Any] = {}  # budget and scores as they were made, also after they are spent
        self.merges: list[MergeStep] = []
        self.notes: list[str] = []
        self.kept: dict[tuple[str, str], dict[str, Tensor]] = {}
        self.reduced = False
        self.memo: dict[Any, Any] = {}

    @property
    def shape(self) -> VideoShape:
        """Sizes with what is alive; reads the counts back only after something was dropped."""
        shape = self.video.shape
        return replace(shape, alive=tuple(self.keep.sum(dim=1).tolist())) if self.reduced else shape

    def run(self) -> None:
        """Call every video hook of every stage, in order."""
        for position, bound in enumerate(self.policy.stages):
            for hook in bound.hooks:
                if hook in VIDEO_HOOKS:
                    self.step(position, bound, hook)

    def step(self, position: int, bound: BoundStage, hook: str) -> None:
        """One hook of one stage: show, ask, apply."""
        closes = bound is self.policy.closer and hook == [h for h in bound.hooks if h in REDUCING_HOOKS][-1]
        stage, token_budget = self.closing(bound) if closes else (bound.stage, None)
        where = f"policy {self.policy.name!r}, stage {bound.label!r}, {hook}"
        before = self.past.kept.get((bound.label, hook))
        record = self.tokens(position, token_budget, before)
        plan = call(where, stage, hook, record, exact=self.policy.exact)
        if plan.state is not None:
            self.kept[bound.label, hook] = {name: value.detach() for name, value in plan.state.items()}
        self.apply(where, plan, token_budget)

    def closing(self, bound: BoundStage) -> tuple[Stage, int | None]:
        """The closer with its count solved, and the number of tokens to leave; its own rule stands if it is fixed."""
        ratio = self.policy.retention_ratio
        if bound.fixed or ratio is None:
            return bound.stage, None
        token_budget = tokens_to_keep(self.video.baseline.total, ratio)
        shape = self.shape
        if shape.total < token_budget:
            self.notes.append(f"{shape.total} tokens reached {bound.label!r}, fewer than the {token_budget} asked for.")
            token_budget = shape.total
        where = f"policy {self.policy.name!r}, stage {bound.label!r}"
        return closing(where, bound.stage, shape, token_budget), token_budget

    def tokens(self, position: int, token_budget: int | None, state: dict[str, Tensor] | None) -> VideoTokens:
        """The record a stage is shown."""
        video = self.video
        return VideoTokens(
            features=self.features,
            keep=self.keep,
            weight=self.weight,
            frame_index=self.frame_index,
            rng=generator(video.seed, video.video_index, position, self.past.chunks),
            token_budget=token_budget,
            retention_ratio=self.policy.retention_ratio,
            token_grid=video.token_grid,
            timestamps_s=video.timestamps_s,
            question=video.question,
            signals=video.signals,
            state=state,
            memo=self.memo,
            **self.made,
        )

    def apply(self, where: str, plan: object, token_budget: int | None) -> None:
        """Act on a plan."""
        if isinstance(plan, Segments):
            self.made["segments"] = plan
        elif isinstance(plan, Budget):
            self.made["budget"] = self.last["budget"] = plan
        elif isinstance(plan, Scores):
            # dead tokens may hold anything, NaN too: no later stage shall see it
            self.made["scores"] = self.last["scores"] = Scores(plan.values.masked_fill(~self.keep, -torch.inf))
        elif isinstance(plan, Keep):
            if token_budget is not None and self.policy.exact:
                self.keep = reconcile(where, plan, self.keep, token_budget)
            else:
                self.keep = plan.mask
            self.spend()
        elif isinstance(plan, Merge):
            self.melt(plan)
            self.spend()

    def spend(self) -> None:
        """A reduction uses up the budget and the scores."""
        self.made |= {"budget": None, "scores": None}
        self.reduced = True
        self.memo = {}

    def melt(self, plan: Merge) -> None:
        """Weighted means at the targets; what is no target dies."""
        step, weight = melt(plan, self.weight.flatten())
        self.features = step.apply(self.features.flatten(0, 1)).view_as(self.features)
        self.keep = step.targets.view_as(self.keep)
        self.weight = weight.view_as(self.weight)
        self.merges.append(step)


def generator(seed: int, video_index: int, position: int, chunk: int = 0) -> torch.Generator:
    """A CPU generator for one stage on one chunk of a video: the same for the same numbers, whatever the batch."""
    # torch seeds its CPU generator with the low 32 bits alone, so the numbers are mixed into those first
    text = f"{seed} {video_index} {position}" + (f" {chunk}" if chunk else "")
    mixed = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(mixed, "little"))


def _over_units(work: _Video) -> Bool[Tensor, "units tokens"]:
    """The kept tokens among all units of the video; of those that step 1 skipped nothing is kept."""
    units = work.video.baseline.frames
    if units == work.keep.shape[0]:
        return work.keep
    mask = work.keep.new_zeros(units, work.keep.shape[1])
    return mask.index_copy(0, work.frame_index.long().to(mask.device), work.keep)


def _trace(work: _Video) -> VideoTrace:
    """What was decided, by reference."""
    video, (frames, tokens) = work.video, work.keep.shape
    return VideoTrace(
        frames=frames,
        tokens=tokens,
        token_grid=video.token_grid,
        timestamps_s=video.timestamps_s,
        frame_index=video.frame_index,
        alive=video.alive,
        budget=work.last.get("budget"),
        scores=work.last.get("scores"),
        merges=tuple(work.merges),
    )


def plan_video(policy: Composition, video: VideoInput) -> TokenPlan:
    """Run steps 3 to 8 of `policy` on one video. Raises as `Policy.plan` does."""
    past = begin(policy, video)
    if video.layers is not None or not policy.layer_stages:
        check_attainable(policy, video.baseline)
    work = _Video(policy, video, past)
    with torch.no_grad(), Stopwatch(video.features.device) as watch:
        work.run()
        index = work.keep.flatten().nonzero().squeeze(1)
        features = work.features.flatten(0, 1).index_select(0, index)
        weight = work.weight.flatten().index_select(0, index)
    if index.numel() == video.baseline.total:
        work.notes += _refuse_silence(policy, video.shape)
    report = Report(
        policy_name=policy.name,
        policy_hash=policy.hash,
        requested_ratio=policy.retention_ratio,
        keeps=(_over_units(work),),
        baselines=(video.baseline.total,),
        not_run=tuple(bound.label for bound in policy.stages if any(h not in VIDEO_HOOKS for h in bound.hooks)),
        notes=tuple(work.notes),
        stopwatches=(watch,),
        traces=(_trace(work),),
    )
    return TokenPlan(
        keep=work.keep,
        token_grid=video.token_grid,
        index=index,
        features=features,
        weight=weight,
        report=report,
        merges=tuple(work.merges),
        state=StreamState(policy_hash=policy.hash, chunks=work.past.chunks + 1, kept=work.kept),
        **work.made,
    )


def _refuse_silence(policy: Composition, shape: VideoShape) -> list[str]:
    """Say what the Report should note about a video of `shape` from which nothing was removed.

    A count that depends on content may come out at everything, which is worth a warning; a static count below all is
    a fault.

    Raises:
        PolicyError: a stage whose count does not depend on content should have removed something.
    """
    where = f"policy {policy.name!r}"
    reducing = [bound for bound in policy.video_stages if bound.runs(*REDUCING_HOOKS)]
    for bound in reducing:
        left = _expected(policy, bound, shape)
        if left < shape.total and not bound.stage.data_dependent:
            raise PolicyError(
                f"{where}: stage {bound.label!r} should have left {left} of {shape.total} visual tokens, but nothing "
                "was removed. Check its settings."
            )
    if policy.retention_ratio == 1.0 or not any(bound.stage.data_dependent for bound in reducing):
        return []
    text = f"{where}: removed none of {shape.total} visual tokens."
    warnings.warn(text, stacklevel=4)
    return [text]


def _expected(policy: Composition, bound: BoundStage, shape: VideoShape) -> int:
    """The most visual tokens the stage should leave of all that there are."""
    if bound is policy.closer and not bound.fixed and policy.retention_ratio is not None:
        return tokens_to_keep(shape.total, policy.retention_ratio)
    return round(bound.stage.attainable(shape)[1] * shape.total)


def reconcile(
    where: str, plan: Keep, alive: Bool[Tensor, "frames tokens"], token_budget: int
) -> Bool[Tensor, "frames tokens"]:
    """The mask of `plan` with exactly `token_budget` tokens.

    A surplus is taken from the frames whose worst kept token scores lowest, a deficit given to the frames whose best
    dropped token scores highest. Of equal scores the lower index stays, or comes back. Without scores the last kept
    and the first dropped move.

    Raises:
        PlanError: more than one token a frame would have to move.
    """
    kept = int(plan.mask.sum())
    missing = token_budget - kept
    if missing == 0:
        return plan.mask
    if missing > 0:
        movable = alive & ~plan.mask
    else:
        movable = plan.mask if plan.protected is None else plan.mask & ~plan.protected
    frames = movable.any(dim=1)
    moves = abs(missing)
    if moves > int(frames.sum()):
        raise PlanError(
            f"{where}: kept {kept} visual tokens where token_budget asks for {token_budget}; the core mends "
            "rounding of one token a frame, no more. Use tokens.token_budget, or set `exact: false` in the policy."
        )
    value = _order(plan, movable)
    mask = plan.mask.clone()
    if missing > 0:
        token, row = _first_best(value, movable, moves)
        mask[row, token] = True
    else:
        # the same search from the far end: the worst is the best of the negated, and of equals the last goes
        token, row = _first_best(-value.flip(0, 1), movable.flip(0, 1), moves)
        mask[mask.shape[0] - 1 - row, mask.shape[1] - 1 - token] = False
    return mask


def _first_best(
    value: Float[Tensor, "frames tokens"], movable: Bool[Tensor, "frames tokens"], moves: int
) -> tuple[Int[Tensor, " moves"], Int[Tensor, " moves"]]:
    """(token, frame) of the `moves` best movable tokens, one a frame; ties go to the lower index."""
    value = value.masked_fill(~movable, -torch.inf)
    # argmax makes no promise on ties, a stable sort does
    best = torch.argsort(value, dim=1, descending=True, stable=True)[:, 0]
    best_value = value.gather(1, best[:, None]).squeeze(1)
    row = torch.argsort(best_value, descending=True, stable=True)[:moves]
    return best[row], row


def _order(plan: Keep, movable: Bool[Tensor, "frames tokens"]) -> Float[Tensor, "frames tokens"]:
    """What to order by: the plan's scores, or the place in the frame (earlier is better)."""
    if plan.scores is not None:
        return plan.scores.float().clamp(min=-3e38, max=3e38)
    place = torch.arange(movable.shape[1], device=movable.device, dtype=torch.float32)
    return (-place).expand(movable.shape)
