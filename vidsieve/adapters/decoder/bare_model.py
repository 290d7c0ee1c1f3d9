"""Pruning inside a bare text LLM (or a video LLM's language model), for checks against other implementations."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vidsieve.adapters.adapter import VideoModel
from vidsieve.adapters.decoder.layer_pruning import LayerPrune
from vidsieve.adapters.decoder.layer_rows import rows_of_prompt
from vidsieve.adapters.prompt.columns import Columns
from vidsieve.framework.planning.pipeline import TokenPlan
from vidsieve.framework.plans import Budget
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.report import Report


@contextmanager
def attach_layers(
    model: VideoModel,
    policy: Policy,
    visual_span: tuple[int, int],
    *,
    frames: int = 1,
    budget: Budget | None = None,
    seed: int = 0,
) -> Iterator[LayerPrune]:
    """While open, a text LLM runs its prompts under the layer stages of `policy`.

    The visual tokens are `visual_span` = (start, length) of every prompt, padding counted: one video of `frames`
    frames, with a frame `budget` alive if one is given. A forward without a past is a new request; it must hold the
    whole prompt. With `positions: compact` the caller passes decode positions as without pruning.

    Raises:
        PolicyError: a stage names a layer that is not there, or one without full attention.
    """
    prune = LayerPrune(model, policy, seed=seed)
    prune.announce = partial(_announce, visual_span, frames, budget)
    with prune.attached():
        yield prune


def _announce(
    span: tuple[int, int], frames: int, budget: Budget | None, prune: LayerPrune, tokens: Tensor, mask: Any
) -> None:
    """The prompt that comes: the span is a video in every row."""
    rows, width = tokens.shape[:2]
    columns = Columns.with_span(span, rows, width, mask, tokens.device)
    keep = torch.ones(frames, span[1] // frames, dtype=torch.bool, device=tokens.device)
    plan = TokenPlan(
        keep=keep,
        index=torch.arange(span[1], device=tokens.device),
        features=torch.zeros(span[1], 0, device=tokens.device),
        weight=torch.ones(span[1], device=tokens.device),
        budget=budget,
        report=Report(policy_name=prune.policy.name, policy_hash="", requested_ratio=None, keeps=(keep,)),
    )
    layers = len(prune.decoder.layers)
    prune.start(rows_of_prompt(columns, 0, [[plan]] * rows, columns.visual, prune.policy, layers), columns.mask)
