"""DyCoke: in windows of four frames, drop what an earlier frame showed; in decode, read the most attended KV."""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep, KeepKV
from vidsieve.framework.records import DecodeStep, VideoShape, VideoTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.blocks import blocks

Windows = Literal["complete", "released"]


class TemporalMerge(Stage):
    """Drop, in windows of four frames, the visual tokens most like those at the same place in an earlier frame.

    The first frame of a window stays whole. Its second and third frame are compared with the first, its fourth
    with the uncompressed third, by cosine similarity in float32, and each keeps the `int((1 - drop_ratio) * n)`
    least similar of its n living tokens (0 allowed; the paper code's own rounding). A token whose counterpart
    was dropped by an earlier stage is kept first. Despite its name the method drops and averages nothing. A
    shorter last window is treated alike; a frame with nothing before it in its window stays whole.

    `windows: released` is what the released code does: in a last window of four the third frame stays whole,
    an odd last frame is lost, and four frames or fewer are a PolicyError.

    Source: DyCoke, arXiv 2411.15024, and its code (github.com/KD-TAO/DyCoke at dd74634, Apache-2.0).
    """

    solves = "drop_ratio"

    drop_ratio: float | None = tunable(
        None,
        low=0.0,
        high=1.0,
        help="dropped ÷ offered in each compared frame, the paper's K; left out, it is solved",
    )
    windows: Windows = Field("complete", description="all windows in full, or as the released code does")

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        roles = frame_roles(shape.frames, self.windows)
        alive = torch.tensor(shape.per_frame, dtype=torch.int64)
        if shape.total == 0:
            return (1.0, 1.0)
        fewest, most = (1.0, 0.0) if self.drop_ratio is None else (self.drop_ratio, self.drop_ratio)
        low, high = (int(_counts(alive, roles, ratio).sum()) / shape.total for ratio in (fewest, most))
        return (low, high)

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        if self.drop_ratio is None:
            raise PolicyError(
                "dycoke.temporal-merge: drop_ratio was left out and nothing solves it; set drop_ratio, or make "
                "this the last reducing stage of a policy with a retention_ratio."
            )
        alive = tokens.keep
        roles = frame_roles(alive.shape[0], self.windows)
        novelty = torch.full(alive.shape, torch.inf, device=alive.device)
        pruned, reference = (where.to(alive.device) for where in (roles.pruned, roles.reference))
        novelty[pruned] = _novelty(tokens.features, alive, pruned, reference)
        counts = _counts(alive.sum(dim=1).cpu(), roles, self.drop_ratio).to(alive.device)
        order = torch.argsort(torch.where(alive, novelty, -torch.inf), dim=1, descending=True, stable=True)
        rank = torch.argsort(order, dim=1)
        mask = (rank < counts.unsqueeze(1)) & alive
        protected = torch.isin(torch.arange(len(alive), device=alive.device), roles.whole.to(alive.device))
        return Keep(mask, scores=torch.where(alive, novelty, 0.0), protected=mask & protected.unsqueeze(1))


class FrameRoles(NamedTuple):
    """Frame numbers by what becomes of them; `pruned[i]` is compared with `reference[i]`. The rest is lost."""

    whole: Int[Tensor, " whole"]
    pruned: Int[Tensor, " pruned"]
    reference: Int[Tensor, " pruned"]


@lru_cache(maxsize=64)
def frame_roles(frames: int, windows: Windows) -> FrameRoles:
    """Who stays whole and who is compared with whom; PolicyError where the released code fails."""
    if windows == "released" and frames <= 4:
        raise PolicyError(
            f"dycoke.temporal-merge: windows 'released' asked, {frames} frames came; the released code fails on "
            "four frames or fewer (RuntimeError: stack expects a non-empty TensorList). Give it five or more, or "
            "use windows 'complete'."
        )
    frame = torch.arange(frames)
    place = frame % 4
    pruned = place > 0
    lost = torch.zeros_like(pruned)
    if windows == "released":
        pruned &= (place != 2) | (frame < frames - 2)
        lost = (frame == frames - 1) & (frame % 2 == 0)
    pruned &= ~lost
    return FrameRoles(
        whole=frame[~pruned & ~lost],
        pruned=frame[pruned],
        reference=(frame - torch.where(place == 2, 2, 1))[pruned],
    )


def _counts(alive: Int[Tensor, " frames"], roles: FrameRoles, drop_ratio: float) -> Int[Tensor, " frames"]:
    """Tokens each frame keeps."""
    counts = torch.zeros_like(alive)
    counts[roles.whole] = alive[roles.whole]
    # not plans.tokens_to_keep: the paper's code truncates the float product, and may keep none
    counts[roles.pruned] = ((1 - drop_ratio) * alive[roles.pruned].double()).to(torch.int64)
    return counts


def _novelty(
    features: Float[Tensor, "frames tokens dim"],
    alive: Bool[Tensor, "frames tokens"],
    pruned: Int[Tensor, " pruned"],
    reference: Int[Tensor, " pruned"],
) -> Float[Tensor, "pruned tokens"]:
    """Minus the cosine similarity of each token to its counterpart; +inf where the counterpart is dead."""
    similarity = features.new_empty(len(pruned), features.shape[1], dtype=torch.float32)

    def clean(frames: Int[Tensor, " some"]) -> Float[Tensor, "some tokens dim"]:
        return torch.where(alive[frames].unsqueeze(-1), features[frames], 0.0).float()

    # block by block: whole copies of the features would take several times the memory of the video
    for some in blocks(len(pruned), features[0].numel()):
        similarity[some] = cosine_similarity(clean(pruned[some]), clean(reference[some]), dim=-1)
    return torch.where(alive[reference], -similarity, torch.inf)


class DynamicKV(Stage):
    """Let later layers read, in each decode step, only the visual KV entries the newest token attends to most.

    The attention of the layer before `layer`, averaged over heads in float32, ranks the visual tokens; of n
    the `int((1 - drop_ratio) * n)` highest are read (0 allowed; the paper code's own rounding). A new choice
    is made when the cosine similarity to earlier attention falls below `threshold`. With `refresh: reuse` that
    is the attention the last choice was made from, and the choice stays until then, so that slow drift is
    noticed too. With `refresh: full`, as in the released code, it is the attention of the step before, and a
    step without a new choice reads everything.

    Nothing leaves for good, because a later step may choose it again. With `rest: parked` entries that are not
    read wait in host memory and come back when they are chosen, so that the cache of the layers from `layer` on
    is smaller where attention reads. With `rest: held` they stay in the cache, from which each step gathers what
    it reads: that frees no memory. `refresh: full` reads everything in most steps, so there entries are held.

    Source: DyCoke, arXiv 2411.15024, and its code (github.com/KD-TAO/DyCoke at dd74634, Apache-2.0).
    """

    optional = True

    layer: int | float = Field(
        3,
        gt=0,
        description="first layer that sees fewer (the paper's L, zero-based); below 1, a fraction of the depth",
    )
    drop_ratio: float = tunable(0.7, low=0.0, high=1.0, help="visual KV entries not read ÷ all, the paper's P")
    threshold: float = tunable(0.9, low=0.0, high=1.0, help="cosine similarity at which attention has not moved")
    refresh: Literal["reuse", "full"] = Field("reuse", description="what a step reads if attention has not moved")
    keep_last: bool = Field(False, description="always read the last visual token, as the released code does")

    rest: Literal["parked", "held"] = Field(
        "parked", description="where entries that a step does not read are: in host memory, or in the cache"
    )

    def parks(self) -> bool:
        """With `rest: parked`, where every step reads a choice."""
        return self.rest == "parked" and self.refresh == "reuse"

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """After the layer before the first that sees fewer."""
        first = self.layer if self.layer >= 1 else max(1, round(self.layer * num_layers))
        if first != int(first) or not 1 <= first < num_layers:
            raise PolicyError(
                f"dycoke.kv: layer {self.layer:g} asked, on a model of {num_layers} decoder layers; the first "
                f"layer that sees fewer must be a whole number from 1 to {num_layers - 1}, or a fraction of the "
                "depth below 1."
            )
        return (int(first) - 1,)

    @hookimpl
    def prune_kv(self, step: DecodeStep) -> KeepKV:
        spared = _last(step.valid) if self.keep_last else torch.zeros_like(step.valid)
        attention = torch.where(step.valid & ~spared, step.attention.float().mean(dim=1), 0.0)
        before = step.state
        count = self._counts(step) if before is None else before["count"]
        ranking = torch.where(spared, torch.inf, torch.where(step.valid, attention, -1.0))
        index = _highest(ranking, count, width=max(self._count_of(visual) for visual in step.counts))
        moved = torch.ones(len(index), dtype=torch.bool, device=index.device)
        if before is not None:
            moved = cosine_similarity(attention, before["attention"], dim=1) < self.threshold
        if self.refresh == "full" or before is None:
            return KeepKV(index, moved, state={"attention": attention, "index": index, "count": count})
        index = torch.where(moved.unsqueeze(1), index, before["index"])
        attention = torch.where(moved.unsqueeze(1), attention, before["attention"])
        state = {"attention": attention, "index": index, "count": count}
        return KeepKV(index, torch.ones_like(moved), state=state)

    def _count_of(self, visual: int) -> int:
        """How many of a row's visual tokens are read; a spared last one does not count among those ranked."""
        spared = min(visual, int(self.keep_last))
        # not plans.tokens_to_keep: the paper's code truncates the float product, and may keep none
        return int((visual - spared) * (1 - self.drop_ratio)) + spared

    def _counts(self, step: DecodeStep) -> Int[Tensor, " rows"]:
        """`_count_of` for every row; made once and kept in the state: later steps copy nothing to the device."""
        return torch.tensor([self._count_of(visual) for visual in step.counts], device=step.valid.device)


def _highest(
    ranking: Float[Tensor, "rows visual"], count: Int[Tensor, " rows"], *, width: int
) -> Int[Tensor, "rows {width}"]:
    """Places of the `count` highest of each row, ascending, then −1 up to `width`; ties go to the lower place."""
    visual = ranking.shape[1]
    order = torch.argsort(ranking, dim=1, descending=True, stable=True)[:, :width]
    place = torch.arange(width, device=ranking.device)
    chosen = torch.where(place < count.unsqueeze(1), order, visual).sort(dim=1).values
    return torch.where(chosen == visual, -1, chosen)


def _last(valid: Bool[Tensor, "rows visual"]) -> Bool[Tensor, "rows visual"]:
    """The last valid place of each row; none in an empty row."""
    return valid & (valid.flip(1).cumsum(dim=1).flip(1) == 1)


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("dycoke.temporal-merge", TemporalMerge)
    register("dycoke.kv", DynamicKV)
