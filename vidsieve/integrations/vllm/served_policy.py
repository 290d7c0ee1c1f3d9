"""The policy that a server runs, and why one cannot be served. vLLM is not imported here.

vLLM sizes a prompt before the vision tower has run, encodes each video once for all requests that hold it, and gives
the language model a prefix that others share. So what is served must count from the shape of a video alone, must not
read the question, and must be done when the language model begins.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vidsieve import load_policy
from vidsieve.framework.errors import RetentionError, UsageError
from vidsieve.framework.hookspecs import KV_HOOKS
from vidsieve.framework.planning.frames import plan_frames
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoShape

POLICY, RETENTION = "VIDSIEVE_POLICY", "VIDSIEVE_RETENTION"
OFFERED = frozenset({"token_grid"})
"""Inputs a stage may ask for. A question or a signal of the vision tower is not at hand when a video is encoded."""
log = logging.getLogger("vllm.vidsieve")


def reasons_against(policy: Policy, *, positions: frozenset[str], frames: bool = True) -> list[str]:
    """List why `policy` cannot be served on a model.

    Args:
        positions: the ways to number what is left that the model can do.
        frames: whether it can leave frames unencoded.
    """
    reasons = []
    for bound in policy.stages:
        inside = [hook for hook in bound.hooks if hook in ("prune_layer", *KV_HOOKS)]
        if inside:
            reasons.append(f"stage {bound.label!r} works inside the language model ({inside[0]}); leave it out")
    if not frames:
        early = [bound.label for bound in policy.frame_stages]
        reasons += [
            f"stage {label!r} chooses frames before they are encoded, which this model does not" for label in early
        ]
    # what a stage would like and does not get changes its choice without a word
    for bound in policy.stages:
        missing = sorted((bound.stage.needs() | bound.stage.wants()) - OFFERED)
        if missing:
            reasons.append(f"stage {bound.label!r} reads {', '.join(missing)}, which is not at hand there")
    if policy.count_fault is not None:
        reasons.append(f"the length of a prompt must be known beforehand, but {policy.count_fault}")
    if policy.positions not in positions and policy.stages:
        able = " or ".join(f"`positions: {name}`" for name in sorted(positions))
        reasons.append(
            f"it has `positions: {policy.positions}`; this model can be served with {able}, a line of its file"
        )
    return reasons


def remarks_on(policy: Policy) -> list[str]:
    """List what a server does otherwise than transformers, though it may serve `policy`."""
    return [_BY_PLACE] if _draws_by_place(policy) else []


_BY_PLACE = (
    "its random choice depends on which video of the prompt a video is; a server keeps what is left of a video for "
    "every prompt that holds it, so each is chosen from as if it were the first"
)
_TRIED = (32, 8, 8)
"""A grid on which every ratio in use is within reach."""


def _draws_by_place(policy: Policy) -> bool:
    """Whether the same video as the first and as the second of a prompt is left with other tokens."""
    frames, height, width = _TRIED
    generator = torch.Generator().manual_seed(0)
    shown = torch.rand(frames, 1, 3, height, width, generator=generator)
    features = torch.rand(frames, height * width, 8, generator=generator)
    found = []
    for place in (0, 1):
        try:
            units = plan_frames(policy, shown, video_index=place) if policy.frame_stages else None
            found.append(
                units if units is not None else policy.plan(features, token_grid=_TRIED, video_index=place).index
            )
        except RetentionError:
            return False
    return not torch.equal(*found)


@dataclass(frozen=True, eq=False)
class ServedPolicy:
    """A policy as a server uses it, one video at a time."""

    policy: Policy

    @cached_property
    def described(self) -> str:
        """Its name, hash and retention ratio, for the log."""
        ratio = self.policy.retention_ratio
        share = "" if ratio is None else f", {ratio:.4g} of the visual tokens"
        return f"policy {self.policy.name!r} ({self.policy.hash}{share})"

    def length(self, grid: tuple[int, int, int]) -> int:
        """How many visual tokens of a video with this grid (t, h, w) stay. Raises RetentionError if out of reach."""
        return self.policy.kept_tokens(VideoShape(grid[0], grid[1] * grid[2]))

    def units(self, pixels: Float[Tensor, "units frames channels height width"]) -> Tensor | None:
        """The units to encode, True stays; None where the policy looks at none, or the ratio is out of reach."""
        if not self.policy.frame_stages:
            return None
        try:
            return plan_frames(self.policy, pixels)
        except RetentionError:
            return None

    def rows(
        self, features: Float[Tensor, "rows dim"], grid: tuple[int, int, int], *, dim: int, units: Tensor | None = None
    ) -> tuple[Float[Tensor, "kept dim"], Int[Tensor, " kept"]]:
        """What is left of a video's features, and the place of each row among all tokens of the grid.

        The first `dim` columns are the visual tokens as the language model reads them; what stands behind them (rows of
        DeepStack) goes the same way. `features` holds the tokens of `units` where only those were encoded. The number
        of rows is `length(grid)`, always: a policy that breaks its promise is mended, and a warning says so. Where the
        ratio is out of reach a video stays whole: no request gets that far, the engine's own made-up videos may.
        """
        try:
            promised = self.length(grid)
        except RetentionError:
            return features, torch.arange(len(features), device=features.device)
        tokens = grid[1] * grid[2]
        frames = len(features) // tokens
        chosen = torch.ones(grid[0], dtype=torch.bool) if units is None else units
        at = chosen.to(features.device).nonzero().squeeze(1)
        if not self.policy.video_stages:
            kept, index = features, torch.arange(len(features), device=features.device)
        else:
            plan = self.policy.plan(
                features[:, :dim].unflatten(0, (frames, tokens)),
                token_grid=grid,
                frame_index=at,
                units=grid[0],
            )
            index = plan.index
            kept = (
                torch.cat([plan.features, plan.carry(features[:, dim:])], dim=1)
                if dim < features.shape[1]
                else plan.features
            )
        kept, index = self._mended(kept, index, features, promised)
        return kept, at[index // tokens] * tokens + index % tokens

    def _mended(
        self, kept: Tensor, index: Int[Tensor, " kept"], features: Tensor, promised: int
    ) -> tuple[Tensor, Int[Tensor, " promised"]]:
        """As many rows as were promised: the last go, or the first that went come back."""
        if len(index) == promised:
            return kept, index
        log.warning(
            "%s left %d visual tokens where %d were promised; mended in order", self.described, len(index), promised
        )
        if len(index) > promised:
            return kept[:promised], index[:promised]
        gone = torch.ones(len(features), dtype=torch.bool, device=index.device)
        gone[index] = False
        back = gone.nonzero().squeeze(1)[: promised - len(index)]
        both, order = torch.cat([index, back]).sort()
        return torch.cat([kept, features[back].to(kept)])[order], both


def served_policy(environment: Mapping[str, str] = os.environ) -> ServedPolicy | None:
    """The policy that the environment names; None where it names none, or one that removes nothing.

    Raises:
        VidsieveError: the policy cannot be read, or the ratio is none.
    """
    name, ratio = environment.get(POLICY), environment.get(RETENTION)
    if not name:
        if ratio:
            raise UsageError(f"{RETENTION}: {ratio} asked, but {POLICY} names no policy; set it, or leave both out.")
        return None
    policy = load_policy(name)
    if ratio:
        try:
            policy = policy.with_(retention_ratio=float(ratio))
        except ValueError:
            raise UsageError(f"{RETENTION}: must be a number above 0 and at most 1, got {ratio!r}.") from None
    return None if policy.is_empty else ServedPolicy(policy)
