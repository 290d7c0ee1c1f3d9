"""Step 10 on a model: in each decode step, later layers read a part of the visual KV entries.

Prefill is untouched. After the layer a stage names, one attention row over the visual columns goes to the stage; the
layers behind it read the rest, in one of two ways. A stage that parks (`Stage.parks`) has its layers keep what is read
in slots, and everything in host memory, from which a new choice swaps in what differs. Otherwise each step gathers the
entries from the whole cache: it reads less memory and frees none, and on short prompts a step can be slower than
without. Each selection reads a few numbers a row back from the device. A step in which every row is inactive costs
nothing beyond the attention row; if some rows are, all rows take part at full width and the others are masked.

A pass of several tokens behind the prompt (candidates of speculative decoding) is carried out token by token in the
layers that read a part, so it equals as many single steps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vidsieve.adapters.adapter import VideoModel, decoder_of
from vidsieve.adapters.attention_taps import AttentionCall, tapped
from vidsieve.adapters.decoder.parked_layer import ParkedLayer, unpark, unparkable
from vidsieve.adapters.decoder.slots import Filled, Slots, Swap
from vidsieve.adapters.prompt.columns import CachedColumns, Columns
from vidsieve.adapters.transformers_internals import attention_name, beam_reorder, unread_configuration
from vidsieve.adapters.uncompiled import uncompiled
from vidsieve.framework.errors import PlanError, PolicyError
from vidsieve.framework.planning.checks import call as call_stage
from vidsieve.framework.plans import KeepKV
from vidsieve.framework.records import DecodeStep
from vidsieve.framework.stage import Stage
from vidsieve.framework.trace import MOST_STEPS, KVTrace


@dataclass(eq=False)
class _Point:
    """A stage at a decoder layer, and what it remembers of the request, by the tokens it had seen then."""

    where: str
    stage: Stage
    layer: int
    states: dict[int, dict[str, Any] | None] = field(default_factory=dict)


class _Group(NamedTuple):
    """Decoder layers whose caches hold the same of the prompt, and how much of each row, `visual` tokens among it."""

    layers: tuple[int, ...]
    held: CachedColumns
    lengths: list[int]
    visual: list[int]

    def behind(self, layer: int) -> int:
        """How many of its layers come after `layer`."""
        return sum(one > layer for one in self.layers)


@dataclass(eq=False)
class _Step:
    """A token of a pass that is decoded: `total` tokens are cached with it, `keep` are the prompt columns it reads.

    `counts` and `views` say what the layers of each group read of the prompt; `entries` are visual entries read.
    `filled` are the slots of the groups that park.
    """

    total: int
    keep: Bool[Tensor, "rows prompt"]
    counts: list[list[int]]
    views: list[CachedColumns | None]
    entries: int
    filled: dict[int, Filled] = field(default_factory=dict)


class DecodeKV:
    """Carries KV stages out on a model's decoder. `read_ratio` tells how much of the visual KV was read.

    `held` tells what each layer's cache holds of the prompt, where layer stages shortened it on its way.
    """

    def __init__(self, model: VideoModel, stages: Mapping[str, Stage]) -> None:
        self.decoder = decoder_of(model)
        self.points = _points(self.decoder, stages)
        self.prompt: Columns | None = None
        self.span: tuple[int, int] | None = None
        self.held: Callable[[], Sequence[CachedColumns | None] | None] = lambda: None
        self._groups: list[_Group] = []
        self.steps: list[_Step] = []
        self._front = 0  # tokens of the pass that belong to the prompt
        self._cache: Any = None
        self._read, self._held = 0, 0
        self._tapped = False
        self.restores = True
        self.notes: tuple[str, ...] = ()
        self._parks = bool(self.points) and self.points[-1].stage.parks()
        self._slots: dict[int, Slots] = {}
        self._width = 0
        self._kept: list[Bool[Tensor, "rows prompt"]] = []

    @property
    def read_ratio(self) -> float | None:
        """Share of the visual KV entries held that were read, over steps and layers; None before any step.

        A step counts once its token stays: candidates that speculative decoding rejects do not.
        """
        self._settle(0 if self._cache is None else int(self._cache.get_seq_length()))
        return self._read / self._held if self._held else None

    @property
    def cache(self) -> Any:
        """The cache of the last decode step."""
        return self._cache

    @property
    def held_entries(self) -> list[int]:
        """Visual entries that each layer's cache holds, all rows together."""
        by_layer = {layer: sum(group.visual) for group in self._groups for layer in group.layers}
        return [by_layer[layer] for layer in sorted(by_layer)]

    @property
    def resident_entries(self) -> list[int]:
        """Visual entries of each layer for which there is room where decode steps attend from, all rows together."""
        entries, last = self.held_entries, self.points[-1].layer
        for number, slots in self._slots.items():
            for layer in self._groups[number].layers:
                entries[layer] = slots.table.numel() if layer > last else entries[layer]
        return entries

    def trace(self, row: int, before: int, prompts: int) -> KVTrace | None:
        """What the steps so far read of a video, in front of which are `before` visual tokens of its row.

        None where each of the `prompts` had several continuations: beams change places on the way.
        """
        self._settle(0 if self._cache is None else int(self._cache.get_seq_length()))
        if self.prompt is None or not self._kept or len(self._kept[0]) != prompts:
            return None
        layer, steps = self.points[-1].layer, tuple(self._kept)
        return KVTrace(layer=layer, steps=steps, visual=self.prompt.visual, row=row, before=before)

    @contextmanager
    def attached(self) -> Iterator["DecodeKV"]:
        """While open, decode steps of the model run under the stages."""
        first = min(point.layer for point in self.points)
        modules = {i: layer.self_attn for i, layer in enumerate(self.decoder.layers) if i >= first}
        handle = self.decoder.register_forward_pre_hook(self._begin, with_kwargs=True)
        self._caches: list[Any] = []
        try:
            with uncompiled, tapped(modules, self._tap):
                yield self
        finally:
            handle.remove()
            for cache in self._caches:
                del cache.reorder_cache
                if self.restores:
                    unpark(cache)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each pass of the decoder: which of its tokens are decoded behind a prompt with visual tokens?

        One in an ordinary step. Speculative decoding runs candidates in the same pass, the first ones with the prompt;
        of those that it rejected, nothing is left in the cache or remembered.
        """
        given = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args)
        tokens: Tensor = next(one for one in given if one is not None)
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        rows, new = tokens.shape[:2]
        self._settle(past)
        if past == 0 and self.span is not None:
            self.prompt = Columns.with_span(self.span, rows, new, kwargs.get("attention_mask"), tokens.device)
            self._groups, self._slots, self._kept = [], {}, []
            for point in self.points:
                point.states = {}
        if self.prompt is None or past + new <= self.prompt.width or not any(self.prompt.visual_counts):
            return
        self.prompt = prompt = self.prompt.for_rows(rows)
        if not self._groups or len(self._groups[0].lengths) != rows:
            self._groups = _groups_of(prompt, self.held(), len(self.decoder.layers))
            self._slots = {}
            unpark(cache)
        self._front = max(prompt.width - past, 0)
        entries = sum(len(group.layers) * sum(group.visual) for group in self._groups)
        self.steps = [
            _Step(
                total=total,
                keep=torch.ones_like(prompt.visual),
                counts=[group.lengths for group in self._groups],
                views=[None] * len(self._groups),
                entries=entries,
            )
            for total in range(past + self._front + 1, past + new + 1)
        ]
        for point in self.points:
            point.states = {total: state for total, state in point.states.items() if total == past}
        self._cache = cache
        self._follow_beams(cache)

    def _settle(self, past: int) -> None:
        """Count the steps of the last pass whose tokens stayed among the `past` ones."""
        if self.steps and not self._tapped:
            raise unread_configuration(self.decoder.layers[self.points[0].layer].self_attn)
        for step in self.steps:
            if step.total <= past:
                self._read += step.entries
                self._held += sum(len(group.layers) * sum(group.visual) for group in self._groups)
                if len(self._kept) < MOST_STEPS:
                    self._kept.append(step.keep)
        self.steps, self._tapped = [], False

    def _follow_beams(self, cache: Any) -> None:
        """Beam search permutes the cache's rows between steps; what stages remember must move along."""
        if any(cache is known for known in self._caches):
            return
        original = beam_reorder(cache)

        def reorder(beam_idx: Tensor) -> None:
            original(beam_idx)
            for point in self.points:
                point.states = {total: _reordered(state, beam_idx) for total, state in point.states.items()}
            for slots in self._slots.values():
                slots.reorder(beam_idx)

        cache.reorder_cache = reorder
        self._caches.append(cache)

    def _tap(self, call: AttentionCall) -> Any:
        """The attention of a layer at or behind a prune point."""
        if not self.steps:
            return call.run(call.key, call.value, call.mask)
        self._tapped = True
        number = self._group(call.layer)
        views = [step.views[number] for step in self.steps]
        points = [point for point in self.points if point.layer == call.layer]
        alone = [call]
        if call.query.shape[2] > 1 and (points or any(views)):
            alone = [self._alone(call, step) for step in self.steps]
        if number in self._slots and call.layer > self.points[-1].layer:
            output = _joined([*self._prompt_part(call), *self._from_slots(call, alone, number)])
        elif any(views):
            parts = [_read(one, view) for one, view in zip(alone, views, strict=True)]
            output = _joined([*self._prompt_part(call), *parts])
        else:
            output = call.run(call.key, call.value, call.mask)
        if points:
            for one, step in zip(alone, self.steps, strict=True):
                for point in points:
                    self._decide(point, one, step)
        return output

    def _from_slots(self, call: AttentionCall, alone: Sequence[AttentionCall], number: int) -> list[Any]:
        """The kernel's results on what stands in the slots, token by token; the first time, the rest is parked."""
        slots, layers = self._slots[number], self._cache.layers
        first = not isinstance(layers[call.layer], ParkedLayer)
        if first:
            tokens = self.steps[0].filled[number].tokens
            layers[call.layer] = ParkedLayer(layers[call.layer], slots.prompt, slots.visual, slots.others, tokens)
        layer, results = layers[call.layer], []
        for turn, (one, step) in enumerate(zip(alone, self.steps, strict=True)):
            filled = step.filled[number]
            if filled.swap is not None and (turn or not first):
                layer.put(filled.swap)
            key, value = layer.keys[:, :, : filled.view.width], layer.values[:, :, : filled.view.width]
            results.append(one.run(key, value, filled.view.mask(one.mask, 1, one.implementation, one.query.dtype)))
        return results

    def _group(self, layer: int) -> int:
        return next(number for number, group in enumerate(self._groups) if layer in group.layers)

    def _alone(self, call: AttentionCall, step: _Step) -> AttentionCall:
        """The part of a call for one decoded token: what a pass of that token alone would have been."""
        place = self._front + step.total - self.steps[0].total
        return _part(call, place, place + 1, self._groups[self._group(call.layer)].held.width + self._behind(step))

    def _prompt_part(self, call: AttentionCall) -> list[Any]:
        """The kernel's result for the tokens of the prompt that are in the pass, if any."""
        if not self._front:
            return []
        part = _part(call, 0, self._front, self._groups[self._group(call.layer)].held.width)
        return [part.run(part.key, part.value, part.mask)]

    def _behind(self, step: _Step) -> int:
        """Tokens behind the prompt that a step sees, its own included."""
        assert self.prompt is not None
        return step.total - self.prompt.width

    def _decide(self, point: _Point, call: AttentionCall, step: _Step) -> None:
        """Ask the stage, and narrow what the layers behind read."""
        prompt = self.prompt
        assert prompt is not None
        number = self._group(point.layer)
        group, counts, keep = self._groups[number], step.counts[number], step.keep
        later = torch.ones(len(keep), self._behind(step), dtype=torch.bool, device=keep.device)
        attention = attention_row(call, torch.cat([group.held.among(keep & prompt.mask.bool()), later], dim=1))
        visual = [seen - (all_ - left) for seen, all_, left in zip(group.visual, group.lengths, counts, strict=True)]
        shown = _shown(prompt, group.held.spread(attention, prompt.width), group.held.has(keep))
        record = DecodeStep(**shown, counts=tuple(visual), layer=point.layer, state=point.states.get(step.total - 1))
        plan = call_stage(point.where, point.stage, "prune_kv", record)
        point.states[step.total] = plan.state
        self._narrow(point, plan, record, step)

    def _narrow(self, point: _Point, plan: KeepKV, record: DecodeStep, step: _Step) -> None:
        """The columns read from now on in this step. One read-back: counts for each row, and what is new in slots."""
        prompt = self.prompt
        assert prompt is not None
        keep, fits = _chosen(prompt, plan, record)
        step.keep = step.keep & keep
        behind = [number for number, group in enumerate(self._groups) if group.layers[-1] >= point.layer]
        reads = {number: self._groups[number].held.among(step.keep) for number in behind}
        sums = torch.stack([one.sum(dim=1) for one in reads.values()])
        wanted = self._wanted(point, plan, reads)
        missing = [self._slots[number].missing(one).sum(dim=1).max() for number, one in wanted.items()]
        idle = (~plan.active & record.valid.any(dim=1)).any().to(keep.device)
        told = torch.cat([sums.flatten(), torch.stack([fits, idle, *missing]).long()]).tolist()
        counts, (ok, rests, *most) = told[: sums.numel()], told[sums.numel() :]
        self._check(point, plan, bool(ok), bool(rests and wanted))
        rows = len(keep)
        for turn, number in enumerate(behind):
            group, left = self._groups[number], counts[turn * rows : (turn + 1) * rows]
            step.entries -= group.behind(point.layer) * (sum(step.counts[number]) - sum(left))
            step.counts[number] = left
            if number in wanted:
                continue
            whole = left == group.lengths
            step.views[number] = None if whole else CachedColumns.read(reads[number], left, self._behind(step))
        for (number, one), count in zip(wanted.items(), most, strict=True):
            group = self._groups[number]
            lengths = zip(step.counts[number], group.lengths, group.visual, strict=True)
            chosen = [left - (held - seen) for left, held, seen in lengths]
            step.filled[number] = filled = self._slots[number].fill(one, count, chosen, self._behind(step))
            step.views[number] = filled.view
            if filled.swap is not None:
                self._fetch(group, filled.swap)

    def _wanted(
        self, point: _Point, plan: KeepKV, reads: Mapping[int, Bool[Tensor, "rows held"]]
    ) -> dict[int, Bool[Tensor, "rows visual"]]:
        """Of the groups whose layers park what is not read: which visual entries this step reads."""
        prompt = self.prompt
        assert prompt is not None
        if point is not self.points[-1] or not self._parks:
            return {}
        why = unparkable(self._cache, point.layer)
        if why:
            self._parks, self.notes = False, (f"{point.where}: entries stayed in the cache, because {why}.",)
            return {}
        for number in reads:
            group = self._groups[number]
            if number not in self._slots and group.behind(point.layer):
                visual = group.held.among(prompt.visual)
                self._slots[number] = Slots.of(group.held, visual, group.visual, plan.index.shape[1])
                self._width = plan.index.shape[1]
        return {number: slots.wanted(reads[number]) for number, slots in self._slots.items()}

    def _fetch(self, group: _Group, swap: Swap) -> None:
        """Let the layers of a group that have parked their entries bring those of a swap."""
        for number in group.layers:
            layer = self._cache.layers[number] if number < len(self._cache.layers) else None
            if isinstance(layer, ParkedLayer):
                layer.fetch(swap)

    def _check(self, point: _Point, plan: KeepKV, fits: bool, idle: bool) -> None:
        """Refuse indices that are none, and what there are no slots for."""
        assert self.prompt is not None
        if not fits:
            raise PlanError(
                f"{point.where}: KeepKV.index must hold numbers of the row's visual tokens (0 to "
                f"{max(self.prompt.visual_counts) - 1} at most, -1 to fill up), got others."
            )
        if idle:
            raise PlanError(
                f"{point.where}: KeepKV.active must be True in every row with visual tokens, because the stage parks "
                "what a step does not read (Stage.parks) and there is no room for everything."
            )
        if self._slots and plan.index.shape[1] > self._width and point is self.points[-1]:
            raise PlanError(
                f"{point.where}: KeepKV.index had {self._width} columns in the first step of the request and has "
                f"{plan.index.shape[1]} now; keep the width and fill up with -1."
            )


def _groups_of(prompt: Columns, held: Sequence[CachedColumns | None] | None, layers: int) -> list[_Group]:
    """The layers of a decoder by what they hold. Reads counts back, once a request."""
    rows = len(prompt.ids)
    everything = CachedColumns.everything(rows, prompt.width, prompt.visual.device)
    kinds: dict[int, tuple[CachedColumns | None, list[int]]] = {}
    for layer in range(layers):
        one = None if held is None else held[layer]
        kinds.setdefault(id(one), (one, []))[1].append(layer)
    groups = []
    for one, own in kinds.values():
        if one is None:
            groups.append(_Group(tuple(own), everything, [prompt.width] * rows, list(prompt.visual_counts)))
            continue
        wide = one.for_rows(rows).on(prompt.visual.device)
        lengths, visual = torch.stack([wide.real.sum(dim=1), wide.among(prompt.visual).sum(dim=1)]).tolist()
        groups.append(_Group(tuple(own), wide, lengths, visual))
    return groups


def _shown(
    prompt: Columns, attention: Float[Tensor, "rows heads prompt"], keep: Bool[Tensor, "rows prompt"]
) -> dict[str, Tensor]:
    """The attention to visual tokens that a stage is shown, and which of them are valid: those among `keep`."""
    places = prompt.visual_places
    valid = (prompt.visual_slots & keep.gather(1, places)).to(attention.device)
    index = places.to(attention.device)[:, None, :].expand(-1, attention.shape[1], -1)
    return {"attention": attention.gather(2, index) * valid[:, None], "valid": valid}


def _chosen(prompt: Columns, plan: KeepKV, record: DecodeStep) -> tuple[Bool[Tensor, "rows prompt"], Bool[Tensor, ""]]:
    """The columns a plan reads (all of an inactive row), and whether its indices are numbers of visual tokens."""
    device, most = prompt.visual.device, prompt.visual_places.shape[1]
    index = plan.index.long().to(device)
    fits = ((index >= -1) & (index < prompt.visual_slots.sum(dim=1, keepdim=True))).all()
    slot = torch.where((index < 0) | (index >= most), most, index)
    picked = torch.zeros(len(index), most + 1, dtype=torch.bool, device=device).scatter(1, slot, True)[:, :most]
    picked &= record.valid.to(device)
    columns = torch.zeros_like(prompt.visual).scatter(1, prompt.visual_places, picked)
    return ~prompt.visual | columns | ~plan.active.to(device)[:, None], fits


def _part(call: AttentionCall, start: int, stop: int, keys: int) -> AttentionCall:
    """A call for some of its new tokens over its first `keys` columns."""
    mask, options = call.mask, dict(call.options)
    if isinstance(mask, Tensor):
        mask = mask[:, :keys] if mask.dim() == 2 else mask[:, :, start:stop, :keys]
    places = options.get("position_ids")
    if isinstance(places, Tensor) and places.shape[-1] == call.query.shape[2]:
        options["position_ids"] = places[..., start:stop]
    key, value = call.key[:, :, :keys], call.value[:, :, :keys]
    return replace(call, query=call.query[:, :, start:stop], key=key, value=value, mask=mask, options=options)


def _read(call: AttentionCall, view: CachedColumns | None) -> Any:
    """The kernel's result for one token on what it reads."""
    if view is None:
        return call.run(call.key, call.value, call.mask)
    mask = view.mask(call.mask, 1, call.implementation, call.query.dtype)
    return call.run(view.taken(call.key), view.taken(call.value), mask)


def _joined(parts: Sequence[Any]) -> Any:
    """Kernel results for the tokens of a pass, one after the other; attention weights of differing width are left
    out."""
    return parts[0] if len(parts) == 1 else (torch.cat([output for output, _ in parts], dim=1), None)


def attention_row(call: AttentionCall, read: Bool[Tensor, "rows keys"]) -> Float[Tensor, "rows heads keys"]:
    """Softmaxed attention of the newest token over all columns it reads, in float32, without repeating keys."""
    rows, heads, _, dim = call.query.shape
    key = call.key[:, :, : read.shape[1]].float()
    query = call.query.float().view(rows, key.shape[1], -1, dim)
    scaling = call.options.get("scaling")
    logits = torch.einsum("bhgd,bhsd->bhgs", query, key) * (dim**-0.5 if scaling is None else scaling)
    logits = logits.masked_fill(~read.to(key.device)[:, None, None, :], -torch.inf)
    return logits.softmax(dim=-1).view(rows, heads, -1)


def _points(decoder: Any, stages: Mapping[str, Stage]) -> list[_Point]:
    """The prune points in the order they are reached; stages at one layer keep the policy's order."""
    config, layers = decoder.config, len(decoder.layers)
    types = getattr(config, "layer_types", None) or ["full_attention"] * layers
    if attention_name(config) == "flex_attention":
        raise PolicyError("KV stages: flex_attention's block masks cannot be cut; load the model with sdpa or flash.")
    points = []
    for where, stage in stages.items():
        for layer in stage.layers(layers):
            if not 0 <= layer < layers or set(types[layer:]) != {"full_attention"}:
                raise PolicyError(
                    f"{where}: asked to act after layer {layer}, but this model has {layers} layers, of types "
                    f"{', '.join(sorted(set(types)))}; it must be one of them, with full attention from there on."
                )
            points.append(_Point(where, stage, layer))
    return sorted(points, key=lambda point: point.layer)


def _reordered(state: dict[str, Any] | None, order: Tensor) -> dict[str, Any] | None:
    """A stage's state with its rows permuted."""
    if state is None:
        return None
    return {k: v.index_select(0, order.to(v.device)) if isinstance(v, Tensor) else v for k, v in state.items()}


@contextmanager
def attach_kv(model: VideoModel, stages: Sequence[Stage], visual_span: tuple[int, int]) -> Iterator[DecodeKV]:
    """While open, a text LLM (or a video LLM's language model) decodes under KV stages.

    The visual tokens are `visual_span` = (start, length) of every prompt, padding counted. A forward without a past
    is a new request; it must hold the whole prompt.

    Raises:
        PolicyError: a stage names a layer that is not there.
    """
    named = {f"stage {type(stage).__name__} ({index}), prune_kv": stage for index, stage in enumerate(stages)}
    decode = DecodeKV(model, named)
    decode.span = visual_span
    with decode.attached():
        yield decode
