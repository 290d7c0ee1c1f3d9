"""DyCoke's dynamic pruning in decode: later layers read the visual KV entries the newest token attends to."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import KeepKV
from vidsieve.framework.records import DecodeStep
from vidsieve.framework.stage import Stage, tunable


class DynamicKV(Stage):
    """Let later layers read, in each decode step, only the visual KV entries the newest token attends to most.

    The attention of the layer before `layer`, averaged over heads in float32, ranks the visual tokens; of n
    the `int((1 - drop_ratio) * n)` highest are read (0 allowed; the paper code's own rounding). A new choice
    is made when the cosine similarity to earlier attention falls below `threshold`. With `refresh: reuse` that
    is the attention the last choice was made from, and the choice stays until then, so that slow drift is
    noticed too. With `refresh: full`, as in the released code, it is the attention of the step before, and a
    step without a new choice reads everything.

    This frees no memory: nothing is evicted, the cache keeps every entry so that a later step can choose it
    again. A step only reads fewer keys and values, and gathering them costs time too.

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
    register("dycoke.kv", DynamicKV)
