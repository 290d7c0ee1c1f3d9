"""Steps 3 to 8 on a prompt: plan every video, then drop features, ids, masks and positions with one index.

To transformers the result is a shorter prompt with explicit positions, so nothing of the model is touched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from vidsieve.adapters.base import Adapter, VideoModel
from vidsieve.adapters.columns import PER_TOKEN, Columns, kept_order
from vidsieve.adapters.encode import encode, repack, rows_of
from vidsieve.adapters.layout import VideoLayout
from vidsieve.adapters.positions import has_mrope, original_positions, text_positions
from vidsieve.adapters.prompt import question_ids, videos_by_row
from vidsieve.framework.pipeline import TokenPlan
from vidsieve.framework.policy import Policy
from vidsieve.framework.report import Report, Stopwatch


@dataclass(frozen=True, eq=False, kw_only=True)
class Request:
    """A policy about to be applied to a batch of prompts. `start` is the position of the first column, row by row."""

    adapter: Adapter
    model: VideoModel
    policy: Policy
    inputs: Mapping[str, Any]
    ids: Int[Tensor, "rows columns"]
    mask: Shaped[Tensor, "rows columns"]
    pad_id: int
    seed: int = 0
    start: Int[Tensor, "*axes rows one"] | None = None

    @property
    def placeholders(self) -> Bool[Tensor, "rows columns"]:
        """Where the prompt holds video tokens, structural ones included."""
        return self.ids.eq(self.model.config.video_token_id)


@dataclass(frozen=True, eq=False, kw_only=True)
class Shortened:
    """The short prompt: its columns, the video features it needs (None without video), and what was done.

    `gapped` says that a one-axis model must be shown other positions than contiguous ones. `plans` are those of the
    new videos, row by row; `start` is how many columns in front of them are cached.
    """

    columns: Columns
    video: Any
    report: Report
    gapped: bool
    plans: Sequence[Sequence[TokenPlan]]
    start: int = 0


def shorten(request: Request) -> Shortened:
    """Apply steps 3 to 8.

    Raises:
        InputError: placeholders and videos do not fit; raised before the vision tower runs.
        PolicyError: as `Policy.plan`.
    """
    model, inputs = request.model, request.inputs
    videos = videos_by_row(request.adapter, model.config, inputs, request.placeholders)
    with torch.no_grad():
        with Stopwatch(model.device) as vision:
            output = encode(model, "video", inputs)
        plans = _plan_all(request, videos, output)
        with Stopwatch(model.device) as gathering:
            columns = _columns(request, videos)
            columns, removed = _drop(request, columns, videos, plans)
            video = _features(output, list(chain(*videos)), plans) if plans else None
    report = Report.combine([plan.report for plan in plans]) if plans else empty_report(request.policy)
    report.stopwatches = (*report.stopwatches, gathering)
    report.extra["vision"] = vision
    gapped = removed and request.policy.positions == "original" and not has_mrope(model)
    queue = iter(plans)
    by_row = [[next(queue) for _ in layouts] for layouts in videos]
    return Shortened(columns=columns, video=video, report=report, gapped=gapped, plans=by_row)


def empty_report(policy: Policy) -> Report:
    """The report of a call without video: no stage ran."""
    return Report(
        policy_name=policy.name,
        policy_hash=policy.hash,
        requested_ratio=policy.retention_ratio,
        not_run=tuple(bound.label for bound in policy.stages),
    )


def _plan_all(request: Request, videos: Sequence[Sequence[VideoLayout]], output: Any) -> list[TokenPlan]:
    """One plan a video. A video's random numbers depend on its place in its own row, never on the row."""
    features = iter(rows_of(output))
    plans = []
    for row, layouts in enumerate(videos):
        asked = request.policy.needs() | request.policy.wants()
        question = _question(request, row) if layouts and "question" in asked else None
        for index, layout in enumerate(layouts):
            plans.append(_plan(request, layout, next(features), question, index))
    return plans


def _plan(request: Request, layout: VideoLayout, rows: Tensor, question: Tensor | None, video_index: int) -> TokenPlan:
    """Steps 3 to 7 on one video's visual rows."""
    seconds = layout.seconds_per_frame
    times = None if seconds is None else torch.arange(layout.frames, device=rows.device) * seconds
    return request.policy.plan(
        rows[: layout.visual].unflatten(0, (layout.frames, layout.tokens)),
        token_grid=layout.grid,
        timestamps_s=None if times is None else times.float(),
        question=question,
        layers=request.model.config.get_text_config().num_hidden_layers,
        seed=request.seed,
        video_index=video_index,
    )


def _question(request: Request, row: int) -> Tensor | None:
    """Input embeddings of the words after the last visual token of a row; None if there are none."""
    config = request.model.config
    visual = request.placeholders[row] | request.ids[row].eq(config.image_token_id)
    words = question_ids(request.adapter, request.model, request.ids[row], request.mask[row].bool(), visual)
    embed = request.model.get_input_embeddings()
    return embed(words.to(embed.weight.device)) if words.numel() else None


def _columns(request: Request, videos: Sequence[Sequence[VideoLayout]]) -> Columns:
    """The full prompt's columns. Fills in `mm_token_type_ids`, without which M-RoPE silently sees only text."""
    ids, mask, model = request.ids, request.mask, request.model
    others = {name: request.inputs[name] for name in PER_TOKEN if request.inputs.get(name) is not None}
    others = {name: values[:, -ids.shape[1] :] for name, values in others.items()}
    if has_mrope(model) and "mm_token_type_ids" not in others:
        image = ids.eq(model.config.image_token_id)
        others["mm_token_type_ids"] = image.to(torch.int32) + 2 * request.placeholders.to(torch.int32)
    positions = original_positions(model, {**request.inputs, **others}, ids, mask)
    if request.start is not None:
        positions = positions + request.start
    visual = _spread(request.placeholders, _flags(list(chain(*videos)), None, ids.device))
    return Columns(ids=ids, mask=mask, positions=positions, visual=visual, others=others)


def _flags(layouts: Sequence[VideoLayout], plans: Sequence[TokenPlan] | None, device: torch.device) -> Tensor:
    """Per feature row, video after video: is it visual (without plans), or does it stay (with plans)."""
    parts = [torch.zeros(0, dtype=torch.bool, device=device)]
    for index, layout in enumerate(layouts):
        if plans is None:
            parts.append(torch.ones(layout.visual, dtype=torch.bool, device=device))
        else:
            parts.append(plans[index].keep.flatten().to(device))
        parts.append(torch.full((layout.structural,), plans is not None, device=device))
    return torch.cat(parts)


def _spread(places: Bool[Tensor, "rows columns"], flags: Bool[Tensor, " all"]) -> Bool[Tensor, "rows columns"]:
    """Put one flag on each placeholder, in reading order; False elsewhere."""
    return torch.zeros_like(places).masked_scatter(places, flags)


def _drop(
    request: Request,
    columns: Columns,
    videos: Sequence[Sequence[VideoLayout]],
    plans: Sequence[TokenPlan],
) -> tuple[Columns, bool]:
    """The columns that stay, right-aligned, and whether any went. With nothing removed they are left untouched."""
    removed, queue = [], iter(plans)
    for layouts in videos:
        removed.append(sum(layout.visual - next(queue).index.shape[0] for layout in layouts))
    if not any(removed):
        return columns, False
    places = request.placeholders
    stays = ~places | _spread(places, _flags(list(chain(*videos)), plans, places.device))
    keep = stays & columns.mask.bool()
    lengths = columns.mask.long().sum(dim=1).tolist()
    width = max(length - gone for length, gone in zip(lengths, removed, strict=True))
    order, real = kept_order(keep, width)
    short = columns.take(order, real, request.pad_id)
    if request.policy.positions == "compact":
        flat = text_positions(short.mask)
        start = 0 if request.start is None else request.start
        short = short.placed((flat + start).expand_as(short.positions))
    return short, True


def _features(output: Any, layouts: Sequence[VideoLayout], plans: Sequence[TokenPlan]) -> Any:
    """The kept feature rows, structural rows after them, in a fresh output; DeepStack rows are carried along."""

    def stay(rows: Tensor, layout: VideoLayout, plan: TokenPlan, kept: Tensor | None) -> Tensor:
        visual = plan.carry(rows[: layout.visual]) if kept is None else kept
        return torch.cat([visual.to(rows), rows[layout.visual :]])

    triples = list(zip(rows_of(output), layouts, plans, strict=True))
    features = [stay(rows, layout, plan, plan.features) for rows, layout, plan in triples]
    levels = getattr(output, "deepstack_features", None)
    if levels is None:
        return repack(output, features, None)
    pairs = list(zip(layouts, plans, strict=True))
    deep = [[stay(r, *pair, None) for r, pair in zip(level, pairs, strict=True)] for level in levels]
    return repack(output, features, deep)
