"""DyCoke's token temporal merging: in windows of four frames, drop what the frame before already showed."""

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
from vidsieve.framework.plans import Keep
from vidsieve.framework.records import VideoShape, VideoTokens
from vidsieve.framework.stage import Stage, tunable

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
    clean = torch.where(alive.unsqueeze(-1), features, 0.0)
    similarity = cosine_similarity(clean[pruned].float(), clean[reference].float(), dim=-1)
    return torch.where(alive[reference], -similarity, torch.inf)


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("dycoke.temporal-merge", TemporalMerge)
