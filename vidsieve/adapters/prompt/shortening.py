"""Steps 3 to 8 on a prompt: plan every video, then drop features, ids, masks and positions with one index.

To transformers the result is a shorter prompt with explicit positions, so nothing of the model is touched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from vidsieve.adapters.adapter import Adapter, VideoModel
from vidsieve.adapters.layouts import VideoLayout
from vidsieve.adapters.prompt.columns import PER_TOKEN, Columns, kept_order
from vidsieve.adapters.prompt.positions import (
    beyond,
    original_positions,
    reads_types,
    text_positions,
    trained_positions,
)
from vidsieve.adapters.prompt.reading import placeholders_of, question_ids, videos_by_row
from vidsieve.adapters.towers import require_pixels
from vidsieve.adapters.transformers_internals import rope_index
from vidsieve.adapters.vision.encoded_videos import of_units, with_pixels
from vidsieve.adapters.vision.encoding import Vision, repack, rows_of
from vidsieve.adapters.vision.signals import encode_all, signals_by_picture
from vidsieve.framework.errors import InputError
from vidsieve.framework.hookspecs import KV_HOOKS
from vidsieve.framework.planning.frames import plan_frames
from vidsieve.framework.planning.pipeline import TokenPlan
from vidsieve.framework.policy.policy import Policy
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

    @cached_property
    def placeholders(self) -> Bool[Tensor, "rows columns"]:
        """Where the prompt holds video tokens, structural ones included."""
        return placeholders_of(self.adapter, self.model.config, self.ids)


@dataclass(frozen=True, eq=False, kw_only=True)
class Shortened:
    """The short prompt: its columns, the features its videos need (None without), and what was done.

    `features` go to the model under the adapter's modality. `gapped` says that a one-axis model must be shown other
    positions than contiguous ones. `plans` are those of the new videos, row by row; `start` is how many columns in
    front of them are cached.
    """

    columns: Columns
    features: Any
    report: Report
    gapped: bool
    plans: Sequence[Sequence[TokenPlan]]
    start: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class PlannedVideo:
    """A video with its plan, or (with no plan) a picture that is carried along whole.

    `layout` is the whole video's, `encoded` that of the units which the vision tower saw, `units` which those are
    (None for all).
    """

    layout: VideoLayout
    encoded: VideoLayout
    plan: TokenPlan | None
    units: Bool[Tensor, " units"] | None = None

    @property
    def removed(self) -> int:
        """Placeholders that go."""
        if self.plan is None:
            return 0
        fixed = self.encoded.rows - self.encoded.visual
        return self.layout.placeholders - self.plan.index.shape[0] - fixed

    def stays(self, device: torch.device) -> Bool[Tensor, " placeholders"]:
        """Which placeholders stay. The lead rows of a unit that was not encoded go with it."""
        flags = torch.ones(self.layout.rows, dtype=torch.bool, device=device)
        if self.plan is not None:
            (keep,) = self.plan.report.keeps
            flags[visual_rows(self.layout, device)] = keep.flatten().to(device)
        if self.units is not None and self.layout.lead:
            leads = flags[: self.layout.rows - self.layout.structural].unflatten(0, (self.layout.frames, -1))
            leads[:, : self.layout.lead] = self.units.to(device)[:, None]
        return flags[_present(self.layout, device)]

    def rows(self, rows: Float[Tensor, "all dim"], *, deep: bool = False) -> Float[Tensor, "kept dim"]:
        """The feature rows that stay, structural ones in their places; `deep` for the rows of another level."""
        if self.plan is None:
            return rows
        visual = visual_rows(self.encoded, rows.device)
        kept = self.plan.carry(visual_part(rows, self.encoded)) if deep else self.plan.features
        values = torch.cat([kept.to(rows), rows[~visual]])
        if not self.encoded.lead:
            return values
        index = self.plan.index.to(rows.device)
        places = torch.cat([visual.nonzero().squeeze(1)[index], (~visual).nonzero().squeeze(1)])
        return values[places.argsort()]


def shorten(request: Request) -> Shortened:
    """Apply steps 3 to 8.

    Raises:
        InputError: placeholders and videos do not fit, or the prompt reaches beyond the model's positions; raised
            before the vision tower runs.
        PolicyError: as `Policy.plan`.
    """
    model, policy = request.model, request.policy
    if policy.frame_stages:
        request = replace(request, inputs=with_pixels(request.adapter, request.inputs))
    layouts = videos_by_row(request.adapter, model.config, request.inputs, request.ids, request.placeholders)
    with torch.no_grad():
        with Stopwatch(model.device) as reading:
            whole = _columns(request, layouts)
            if any(layouts):
                _refuse_beyond(request, whole)
        with Stopwatch(model.device) as choosing:
            units = _units(request, layouts)
        outputs, signals = _encode(request, layouts, units)
        vision = Vision.of(outputs)
        pictures = _plan_all(request, layouts, units, vision, signals)
        with Stopwatch(model.device) as gathering:
            columns, removed = _drop(request, whole, pictures)
            features = None if vision is None else shortened_output(vision, list(chain(*pictures)))
    if policy.positions == "compact" and any(layouts):
        _refuse_beyond(request, columns, certain=True)
    gapped = removed and policy.positions != "compact" and columns.positions.dim() == 2
    return Shortened(
        columns=columns,
        features=features,
        report=_report(request, pictures, (reading, choosing, gathering)),
        gapped=gapped,
        plans=[[picture.plan for picture in row if picture.plan is not None] for row in pictures],
    )


def _report(request: Request, pictures: Sequence[Sequence[PlannedVideo]], watches: tuple[Stopwatch, ...]) -> Report:
    """What was done to all videos together."""
    plans = [picture.plan for picture in chain(*pictures) if picture.plan is not None]
    report = Report.combine([plan.report for plan in plans]) if plans else empty_report(request.policy)
    report.stopwatches = (*report.stopwatches, *watches)
    if plans:
        later = ("prune_layer", *KV_HOOKS)
        ran = {bound.label for bound in request.policy.frame_stages if not bound.runs(*later)}
        report.not_run = tuple(label for label in report.not_run if label not in ran)
    return report


def _units(request: Request, layouts: Sequence[Sequence[VideoLayout]]) -> list[Tensor] | None:
    """The units of each video that the vision tower must encode; None for all, when no stage chooses among them."""
    if not request.policy.frame_stages or not any(layouts):
        return None
    assert request.adapter.units is not None
    require_pixels(request.inputs)
    pixels = iter(request.adapter.units.pixels(request.model.config, request.inputs))
    return [
        plan_frames(
            request.policy,
            next(pixels),
            timestamps_s=_seconds(layout, request.ids.device),
            seed=request.seed,
            video_index=index,
        )
        for row in layouts
        for index, layout in enumerate(row)
    ]


def _encode(
    request: Request, layouts: Sequence[Sequence[VideoLayout]], units: Sequence[Tensor] | None
) -> tuple[list[Any], dict[str, Tensor]]:
    """The vision side's output and the signals: of these units of each video, or of everything."""
    adapter, inputs = request.adapter, request.inputs
    if units is None:
        return encode_all(request.model, adapter, [inputs], request.policy)
    assert adapter.units is not None
    given = of_units(adapter, inputs, list(chain(*layouts)), units)
    return encode_all(request.model, adapter, adapter.units.without(inputs, units), request.policy, given)


def _seconds(layout: VideoLayout, device: torch.device) -> Tensor | None:
    """When each unit of a video begins, if that is known."""
    pace = layout.seconds_per_frame
    return None if pace is None else (torch.arange(layout.frames, device=device) * pace).float()


def empty_report(policy: Policy) -> Report:
    """The report of a call without video: no stage ran."""
    return Report(
        policy_name=policy.name,
        policy_hash=policy.hash,
        requested_ratio=policy.retention_ratio,
        not_run=tuple(bound.label for bound in policy.stages),
    )


def _plan_all(
    request: Request,
    layouts: Sequence[Sequence[VideoLayout]],
    units: Sequence[Tensor] | None,
    vision: Vision | None,
    signals: Mapping[str, Tensor],
) -> list[list[PlannedVideo]]:
    """The pictures of each row, videos planned. A video's random numbers depend on its place in its row, never on
    the row."""
    asked = request.policy.needs() | request.policy.wants()
    encoded = _encoded(list(chain(*layouts)), units)
    inners = [layout for layout, _ in encoded]
    rows = iter(rows_of([] if vision is None else vision.features, inners))
    shown = iter(signals_by_picture(signals, inners))
    seen, pictures = iter(encoded), []
    for row, own in enumerate(layouts):
        question = _question(request, row) if own and "question" in asked else None
        pictures.append(taken := list[PlannedVideo]())
        for layout in own:
            inner, mask = next(seen)
            picture = PlannedVideo(layout=layout, encoded=inner, plan=None, units=mask)
            index = sum(one.plan is not None for one in taken)
            features, own_signals = next(rows), next(shown)
            plan = _plan(request, picture, features, question, index, own_signals) if layout.visual else None
            taken.append(replace(picture, plan=plan))
    return pictures


def _encoded(layouts: Sequence[VideoLayout], units: Sequence[Tensor] | None) -> list[tuple[VideoLayout, Tensor | None]]:
    """The layout of what the vision tower saw of each video, and which units those were."""
    if units is None:
        return [(layout, None) for layout in layouts]
    counts = [int(mask.sum()) for mask in units]
    return [
        (replace(layout, frames=count, grid=(count, *layout.grid[1:]), alive=None), mask)
        for layout, count, mask in zip(layouts, counts, units, strict=True)
    ]


def _plan(
    request: Request,
    picture: PlannedVideo,
    rows: Tensor,
    question: Tensor | None,
    video_index: int,
    signals: Mapping[str, Tensor],
) -> TokenPlan:
    """Steps 3 to 7 on one video's visual rows."""
    layout, seen, index = picture.layout, picture.encoded, None
    times = _seconds(layout, rows.device)
    if picture.units is not None:
        index = picture.units.nonzero().squeeze(1).to(rows.device)
        times = None if times is None else times[index]
    return request.policy.plan(
        visual_part(rows, seen).unflatten(0, (seen.frames, seen.tokens)),
        token_grid=seen.grid,
        timestamps_s=times,
        question=question,
        signals=signals,
        frame_index=index,
        units=layout.frames,
        alive=layout.alive,
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


def _columns(request: Request, layouts: Sequence[Sequence[VideoLayout]]) -> Columns:
    """The full prompt's columns."""
    ids, mask = request.ids, request.mask
    others, positions = _numbered(request.adapter, request.model, request.inputs, ids, mask, request.placeholders)
    if request.policy.positions == "trained" and request.inputs.get("position_ids") is None:
        images = ids.eq(request.model.config.image_token_id) & ~request.placeholders
        positions = trained_positions(positions, images.int() + 2 * request.placeholders.int(), mask)
    if request.start is not None:
        positions = positions + request.start
    visual = [visual_placeholders(layout, ids.device) for layout in chain(*layouts)]
    return Columns(ids=ids, mask=mask, positions=positions, visual=_spread(request.placeholders, visual), others=others)


def _numbered(
    adapter: Adapter, model: VideoModel, inputs: Mapping[str, Any], ids: Tensor, mask: Tensor, placeholders: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Further inputs with one entry a token, and positions counted from 0.

    Fills in `mm_token_type_ids`, without which M-RoPE silently sees only text.
    """
    names = [name for name in PER_TOKEN if name not in adapter.spent]
    others = {name: inputs[name] for name in names if inputs.get(name) is not None}
    others = {name: values[:, -ids.shape[1] :] for name, values in others.items()}
    number = rope_index(model)
    if reads_types(number) and "mm_token_type_ids" not in others:
        image = ids.eq(model.config.image_token_id) & ~placeholders
        others["mm_token_type_ids"] = image.to(torch.int32) + 2 * placeholders.to(torch.int32)
    return others, original_positions(number, {**inputs, **others}, ids, mask)


def beyond_positions(adapter: Adapter, model: VideoModel, inputs: Mapping[str, Any]) -> tuple[int, str] | None:
    """The row of an uncompressed prompt that reaches beyond the model's positions, and why; None where all fit."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    places = placeholders_of(adapter, model.config, ids)
    return beyond(model.config, _numbered(adapter, model, inputs, ids, mask, places)[1], mask.bool())


def _refuse_beyond(request: Request, columns: Columns, *, certain: bool = False) -> None:
    """Refuse prompts that reach beyond the model's positions.

    Where they will be counted anew over what is kept (positions: compact), only the text is `certain` to be counted.
    """
    real, positions = columns.mask.bool(), columns.positions
    if request.policy.positions == "compact" and request.policy.stages and not certain:
        real = real & ~columns.visual
        positions = text_positions(real)
    fault = beyond(request.model.config, positions, real)
    if fault is not None:
        row, why = fault
        raise InputError(f"model inputs, row {row}: {why}")


def _spread(places: Bool[Tensor, "rows columns"], flags: Sequence[Tensor]) -> Bool[Tensor, "rows columns"]:
    """Put one flag on each placeholder, in reading order; False elsewhere."""
    none = torch.zeros(0, dtype=torch.bool, device=places.device)
    return torch.zeros_like(places).masked_scatter(places, torch.cat([none, *flags]))


def _drop(request: Request, columns: Columns, pictures: Sequence[Sequence[PlannedVideo]]) -> tuple[Columns, bool]:
    """The columns that stay, padded on the side the prompts are, and whether any went; without removal untouched."""
    removed = [sum(picture.removed for picture in row) for row in pictures]
    if not any(removed):
        return columns, False
    places = request.placeholders
    stays = ~places | _spread(places, [picture.stays(places.device) for picture in chain(*pictures)])
    keep = stays & columns.mask.bool()
    lengths, last = torch.stack([columns.mask.long().sum(dim=1), columns.mask[:, -1].long()]).tolist()
    width = max(length - gone for length, gone in zip(lengths, removed, strict=True))
    order, real = kept_order(keep, width, padded_right=0 in last)
    short = columns.take(order, real, request.pad_id)
    if request.policy.positions == "compact":
        flat = text_positions(short.mask)
        start = 0 if request.start is None else request.start
        short = short.placed((flat + start).expand_as(short.positions))
    return short, True


def visual_rows(layout: VideoLayout, device: torch.device) -> Bool[Tensor, " rows"]:
    """The feature rows that a policy may remove."""
    flags = torch.ones(layout.rows, dtype=torch.bool, device=device)
    inner = layout.rows - layout.structural
    if layout.lead:
        flags[:inner].unflatten(0, (layout.frames, -1))[:, : layout.lead] = False
    flags[inner:] = False
    return flags


def visual_part(rows: Shaped[Tensor, "all dim"], layout: VideoLayout) -> Shaped[Tensor, "visual dim"]:
    """The rows of visual tokens; not copied where they stand together, which is everywhere but behind lead rows."""
    return rows[visual_rows(layout, rows.device)] if layout.lead else rows[: layout.visual]


def visual_placeholders(layout: VideoLayout, device: torch.device) -> Bool[Tensor, " placeholders"]:
    """The placeholders that stand for visual tokens."""
    return visual_rows(layout, device)[_present(layout, device)]


def _present(layout: VideoLayout, device: torch.device) -> Bool[Tensor, " rows"]:
    """The feature rows that have a placeholder."""
    flags = torch.ones(layout.rows, dtype=torch.bool, device=device)
    if layout.alive is not None:
        flags[visual_rows(layout, device)] = layout.alive.flatten().to(device)
    return flags


def shortened_output(vision: Vision, pictures: Sequence[PlannedVideo]) -> Any:
    """The kept rows of all pictures in a fresh output of the model's kind; DeepStack rows are carried along."""
    layouts = [picture.encoded for picture in pictures]

    def short(features: Sequence[Tensor], deep: bool) -> list[Tensor]:
        rows = rows_of(features, layouts)
        return [picture.rows(part, deep=deep) for picture, part in zip(pictures, rows, strict=True)]

    deep = None if vision.levels is None else [short(level, True) for level in vision.levels]
    return repack(vision.sample, short(vision.features, False), deep)
