"""Step 10 on a model: in each decode step, later layers read a part of the visual KV entries.

Prefill is untouched. After the layer a stage names, one attention row over the visual columns goes to the stage; the
layers behind it read the gathered rest. Nothing is evicted: the step reads less memory and frees none, the gather and
the cache's own growth cost time, and on short prompts a step can be slower than without. Each selection reads one
number a row back from the device. A step in which every row is inactive costs nothing beyond the attention row; if
some rows are, all rows take part at full width and the others are masked.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from vidsieve.adapters.adapter import VideoModel, decoder_of
from vidsieve.adapters.decoder.attention_taps import AttentionCall, tapped
from vidsieve.adapters.decoder.cached_columns import CachedColumns
from vidsieve.adapters.decoder.kv_groups import KVGroup, groups_of
from vidsieve.adapters.decoder.kv_prompt import KVPrompt
from vidsieve.adapters.decoder.kv_view import View, attention_row
from vidsieve.adapters.uncompiled import uncompiled
from vidsieve.framework.errors import PlanError, PolicyError
from vidsieve.framework.planning.calls import call as call_stage
from vidsieve.framework.planning.checks import check_keep_kv, check_type
from vidsieve.framework.plans import KeepKV
from vidsieve.framework.records import DecodeStep
from vidsieve.framework.stage import Stage


@dataclass(eq=False)
class _Point:
    """A stage at a decoder layer, and what it remembers of the request."""

    where: str
    stage: Stage
    layer: int
    state: dict[str, Any] | None = None


class DecodeKV:
    """Carries KV stages out on a model's decoder. `read_ratio` tells how much of the visual KV was read.

    `held` tells what each layer's cache holds of the prompt, where layer stages shortened it on its way.
    """

    def __init__(self, model: VideoModel, stages: Mapping[str, Stage]) -> None:
        self.decoder = decoder_of(model)
        self.points = _points(self.decoder, stages)
        self.prompt: KVPrompt | None = None
        self.span: tuple[int, int] | None = None
        self.total = 0
        self.held: Callable[[], Sequence[CachedColumns | None] | None] = lambda: None
        self.keep: Tensor | None = None
        self._groups: list[KVGroup] = []
        self._counts: list[list[int]] = []
        self._views: list[View | None] = []
        self._read, self._held = 0, 0

    @property
    def read_ratio(self) -> float | None:
        """Share of the visual KV entries held that were read, over steps and layers; None before any step."""
        return self._read / self._held if self._held else None

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

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each pass of the decoder: is it a decode step of a prompt with visual tokens?"""
        given = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args)
        tokens: Tensor = next(one for one in given if one is not None)
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        rows, new = tokens.shape[:2]
        if past == 0 and self.span is not None:
            self.prompt = KVPrompt.of_span(self.span, rows, new, kwargs.get("attention_mask"), tokens.device)
            self._groups = []
            for point in self.points:
                point.state = None
        self.total = 0
        if self.prompt is None or new != 1 or past < self.prompt.width or self.prompt.most == 0:
            return
        self.prompt = self.prompt.for_rows(rows)
        if not self._groups or len(self._groups[0].lengths) != rows:
            self._groups = groups_of(self.prompt, self.held(), len(self.decoder.layers))
        self.total, self.keep = past + 1, None
        self._counts = [group.lengths for group in self._groups]
        self._views = [None] * len(self._groups)
        entries = sum(len(group.layers) * sum(group.visual) for group in self._groups)
        self._read, self._held = self._read + entries, self._held + entries
        self._follow_beams(cache)

    def _follow_beams(self, cache: Any) -> None:
        """Beam search permutes the cache's rows between steps; what stages remember must move along."""
        if any(cache is known for known in self._caches):
            return
        original = cache.reorder_cache

        def reorder(beam_idx: Tensor) -> None:
            original(beam_idx)
            for point in self.points:
                point.state = _reordered(point.state, beam_idx)

        cache.reorder_cache = reorder
        self._caches.append(cache)

    def _tap(self, call: AttentionCall) -> Any:
        """The attention of a layer at or behind a prune point."""
        if not self.total:
            return call.run(call.key, call.value, call.mask)
        view = self._views[self._group(call.layer)]
        output = call.run(call.key, call.value, call.mask) if view is None else view.run(call)
        for point in self.points:
            if point.layer == call.layer:
                self._decide(point, call)
        return output

    def _group(self, layer: int) -> int:
        return next(number for number, group in enumerate(self._groups) if layer in group.layers)

    def _decide(self, point: _Point, call: AttentionCall) -> None:
        """Ask the stage, and narrow what the layers behind read."""
        prompt = self.prompt
        assert prompt is not None
        everything = torch.ones_like(prompt.visual) if self.keep is None else self.keep
        number = self._group(point.layer)
        group, counts = self._groups[number], self._counts[number]
        later = torch.ones(len(everything), self.total - prompt.width, dtype=torch.bool, device=everything.device)
        attention = attention_row(call, torch.cat([group.reads(everything & prompt.real), later], dim=1))
        visual = [seen - (all_ - left) for seen, all_, left in zip(group.visual, group.lengths, counts, strict=True)]
        attention = group.spread(attention, prompt.width)
        step = prompt.step(attention, group.has(everything), visual, point.layer, point.state)
        plan = call_stage(point.where, point.stage, "prune_kv", step)
        check_type(point.where, "prune_kv", plan)
        check_keep_kv(point.where, plan, len(everything), step.attention)
        point.state = plan.state
        self._narrow(point, plan, step, everything)

    def _narrow(self, point: _Point, plan: KeepKV, step: DecodeStep, before: Bool[Tensor, "rows prompt"]) -> None:
        """The columns read from now on in this step. One read-back: counts for each row."""
        prompt = self.prompt
        assert prompt is not None
        keep, fits = prompt.chosen(plan, step)
        keep = before & keep
        behind = [number for number, group in enumerate(self._groups) if group.layers[-1] >= point.layer]
        reads = {number: self._groups[number].reads(keep) for number in behind}
        sums = torch.stack([one.sum(dim=1) for one in reads.values()])
        *counts, ok = torch.cat([sums.flatten(), fits.reshape(1)]).tolist()
        if not ok:
            raise PlanError(
                f"{point.where}: KeepKV.index must hold numbers of the row's visual tokens (0 to {prompt.most - 1} at "
                "most, -1 to fill up), got others."
            )
        self.keep, rows = keep, len(keep)
        for turn, number in enumerate(behind):
            self._read_from_now(number, reads[number], counts[turn * rows : (turn + 1) * rows], point.layer)

    def _read_from_now(self, number: int, reads: Bool[Tensor, "rows held"], counts: list[int], layer: int) -> None:
        """What the layers of a group that come after `layer` read in this step."""
        group, prompt = self._groups[number], self.prompt
        assert prompt is not None
        self._read -= group.behind(layer) * (sum(self._counts[number]) - sum(counts))
        self._counts[number] = counts
        whole = counts == group.lengths
        self._views[number] = None if whole else View.of(reads, counts, self.total - prompt.width)


def _points(decoder: Any, stages: Mapping[str, Stage]) -> list[_Point]:
    """The prune points in the order they are reached; stages at one layer keep the policy's order."""
    config, layers = decoder.config, len(decoder.layers)
    types = getattr(config, "layer_types", None) or ["full_attention"] * layers
    if config._attn_implementation == "flex_attention":
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
