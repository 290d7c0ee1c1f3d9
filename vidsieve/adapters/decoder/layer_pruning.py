"""Step 9 on a model: after the layers that stages name, visual tokens leave the sequence, in prefill.

Pre-hooks on decoder layers shorten hidden states, rotary embeddings and masks; layers behind a prune point never see
the tokens again, and their caches are shorter. What stages rank by is a few rows of attention, made from queries and
keys; attention weights are asked of the model nowhere, so its kernel stays what it was.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vidsieve.adapters.adapter import VideoModel, decoder_of
from vidsieve.adapters.attention_taps import AttentionCall, tapped
from vidsieve.adapters.decoder.eviction import Eviction
from vidsieve.adapters.decoder.layer_prefill import Prefill, renumbered
from vidsieve.adapters.decoder.layer_rows import PrefillRow, rows_of_prompt
from vidsieve.adapters.prompt.columns import CachedColumns, Columns
from vidsieve.adapters.transformers_internals import DEEPSTACK, attention_name, deepstack_step, rope_index
from vidsieve.adapters.uncompiled import uncompiled
from vidsieve.framework.errors import PolicyError
from vidsieve.framework.planning.attainable import prune_points
from vidsieve.framework.planning.pipeline import TokenPlan
from vidsieve.framework.plans import Budget
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.report import Report


class LayerPrune:
    """Carries a policy's layer stages out on a model's decoder, for one prompt after another."""

    def __init__(self, model: VideoModel, policy: Policy, *, seed: int = 0) -> None:
        self.decoder = decoder_of(model)
        self.policy, self.seed, self.mrope = policy, seed, rope_index(model) is not None
        self.points = prune_points(policy, len(self.decoder.layers))
        config, layers = self.decoder.config, len(self.decoder.layers)
        refuse_layers(self.decoder, policy, min((point.layer for point in self.points), default=layers))
        self.eviction = Eviction.of(policy, config, layers)
        self.prefill: Prefill | None = None
        self.announce: Callable[[LayerPrune, Tensor, Any], None] | None = None
        self.width = 0
        self._passing = False
        self._step: dict[Any, Any] = {}
        self._cache: Any = None

    def start(
        self,
        rows: Sequence[PrefillRow],
        mask: Tensor,
        visual: Tensor,
        start: int = 0,
        past: Sequence[CachedColumns | None] | None = None,
    ) -> None:
        """The next pass is over a prompt of these columns, `start` of which are cached; some are `visual`."""
        self.width = mask.shape[1]
        self.visual = visual & (torch.arange(self.width, device=visual.device) >= start)
        self.prefill = Prefill(
            self.decoder,
            self.policy,
            rows=rows,
            mask=mask.bool(),
            start=start,
            past=past,
            mrope=self.mrope,
            seed=self.seed,
        )
        self._passing = False

    @property
    def cache(self) -> Any:
        """The cache of the last pass."""
        return self._cache

    @property
    def held_entries(self) -> list[int]:
        """Visual entries of the prompt that each layer's cache holds, all rows together."""
        evicted, prefill = self.eviction.evicted, self.prefill
        assert prefill is not None
        every = [video.counts.entered for row in prefill.rows for video in row.videos]
        counts = [sum(counts) * prefill.times for counts in zip(*every, strict=True)]
        return [count - evicted.get(layer, 0) for layer, count in enumerate(counts)]

    @property
    def held(self) -> tuple[CachedColumns | None, ...] | None:
        """What each layer's cache holds of the prompt; None where it is everything, for all or for a layer."""
        if self.prefill is None or all(one is None for one in self.prefill.held):
            return None
        return tuple(self.prefill.held)

    @contextmanager
    def attached(self) -> Iterator["LayerPrune"]:
        """While open, the decoder prunes prompts that were announced by `start`."""
        layers = self.decoder.layers
        handles = [self.decoder.register_forward_pre_hook(self._begin, with_kwargs=True)]
        tapped_layers = {*(point.layer for point in self.points), *self.eviction.cuts}
        modules = {number: layers[number].self_attn for number in sorted(tapped_layers)}
        try:
            for number, layer in enumerate(layers):
                handles.append(layer.register_forward_pre_hook(_Enter(self, number), with_kwargs=True))
            with uncompiled, tapped(modules, self._tap), self._deepstack():
                yield self
                self.eviction.check()
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _deepstack(self) -> Iterator[None]:
        """While open, features that a decoder adds behind its first layers are cut as the sequence is."""
        original = deepstack_step(self.decoder)
        if original is None or DEEPSTACK in vars(self.decoder):
            yield
            return

        def add(hidden: Tensor, places: Tensor, features: Tensor) -> Tensor:
            prefill = self.prefill
            if prefill is None or not self._passing or prefill.width is None:
                return original(hidden, places, features)
            full = hidden.new_zeros(*places.shape, hidden.shape[-1])
            full[places.to(hidden.device)] = features.to(full)
            return hidden + prefill.shortened(full)

        setattr(self.decoder, DEEPSTACK, add)
        try:
            yield
        finally:
            delattr(self.decoder, DEEPSTACK)

    def report(self, report: Report) -> None:
        """Write what the layer stages did into the report of a call."""
        if self.prefill is None or not self.points:
            return
        videos = [video for row in self.prefill.rows for video in row.videos]
        if not videos:
            return
        report.stopwatches = (*report.stopwatches, *self.prefill.watches)
        report.layer_tokens = tuple(tuple(video.counts.entered) for video in videos)
        entered = sum(sum(counts) for counts in report.layer_tokens)
        report.layer_ratio = entered / (len(self.decoder.layers) * report.baseline_tokens)
        report.traces = tuple(
            replace(trace, points=tuple(video.trail), layers=len(self.decoder.layers))
            for trace, video in zip(report.traces, videos, strict=bool(report.traces))
        )
        ran = {bound.label for bound in self.policy.layer_stages}
        report.not_run = tuple(label for label in report.not_run if label not in ran)
        asked = self.policy.retention_ratio
        if asked is not None and self.policy.exact and abs(asked - report.layer_ratio) * report.baseline_tokens > 1:
            text = f"{asked:g} of the visual tokens was asked, {report.layer_ratio:.4g} entered the mean layer."
            report.notes = (*report.notes, text)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each pass of the decoder: is it the prompt's?"""
        given = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args)
        tokens: Tensor = next(one for one in given if one is not None)
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        refuse_cache(self.policy, cache)
        self.eviction.check()
        self._step, self._cache = {}, cache
        if self.announce is not None and past == 0:
            self.announce(self, tokens, kwargs.get("attention_mask"))
        if self.prefill is None:
            return
        self._passing = past == self.prefill.start
        if self._passing and past + tokens.shape[1] != self.width:
            raise PolicyError(
                f"policy {self.policy.name!r}: a prompt of {self.width - past} tokens came in parts of "
                f"{tokens.shape[1]}, but pruning inside the decoder needs all of it in one pass."
            )
        self.total = past + tokens.shape[1]

    def _tap(self, call: AttentionCall) -> Any:
        if self.prefill is not None and self._passing:
            self.prefill.attended(call)
            output = call.run(call.key, call.value, call.mask)
            self.eviction.attended(call, self.prefill, self.visual, self._cache)
            return output
        return call.run(call.key, call.value, call.mask)

    def enter(self, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Any]:
        """Before a layer: the hidden states and arguments it is to have."""
        prefill = self.prefill
        if prefill is None:
            return hidden, kwargs
        if self._passing:
            return prefill.enter(layer, hidden, kwargs)
        held = prefill.held[layer]
        return hidden, kwargs if held is None else kwargs | self._arguments(held, hidden, kwargs)

    def _arguments(self, held: CachedColumns, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Mask and positions of a decode step for a layer that holds less; made once for layers that agree."""
        if id(held) not in self._step:
            wide = held.grown(self.width, self.total - self.width).for_rows(hidden.shape[0])
            queries, implementation = hidden.shape[1], attention_name(self.decoder.config)
            changed = {"attention_mask": wide.mask(kwargs["attention_mask"], queries, implementation, hidden.dtype)}
            if held.renumbered:
                positions = wide.positions(queries)
                changed["position_embeddings"] = renumbered(self.decoder, positions, hidden, self.mrope)
            self._step[id(held)] = changed
        return {name: _moved(value, hidden.device) for name, value in self._step[id(held)].items()}


class _Enter:
    """The pre-hook of one decoder layer."""

    def __init__(self, prune: LayerPrune, number: int) -> None:
        self.prune, self.number = prune, number

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        named = not args
        hidden, kwargs = self.prune.enter(self.number, kwargs["hidden_states"] if named else args[0], kwargs)
        if named:
            return (), {**kwargs, "hidden_states": hidden}
        return (hidden, *args[1:]), kwargs


def _moved(value: Any, device: torch.device) -> Any:
    """Tensors of an argument on the device of the layer that reads it."""
    if isinstance(value, tuple):
        return tuple(part.to(device) for part in value)
    return value.to(device) if isinstance(value, Tensor) else value


_CACHES = (None, "dynamic", "dynamic_full", "offloaded")
_WHY = {
    "prefill_chunk_size": "a stage ranks visual tokens by what comes after them, so the prompt must run in one pass",
    "prompt_lookup_num_tokens": "rejected candidates would have to leave caches of different lengths",
    "assistant_model": "rejected candidates would have to leave caches of different lengths",
}


def refuse_settings(where: str, setting: Callable[[str], Any]) -> None:
    """Generation settings that need caches of one length, or the prompt more than once.

    Raises:
        PolicyError: one of them is on.
    """
    if setting("use_cache") is False:
        raise PolicyError(
            f"{where}: prunes the prompt once, but use_cache is False, so every step would read it again; leave "
            "use_cache on."
        )
    for name, why in _WHY.items():
        if setting(name) is not None:
            raise PolicyError(f"{where}: cannot run with {name}: {why}. Leave {name} out.")
    cache = setting("cache_implementation")
    if cache not in _CACHES:
        raise PolicyError(
            f"{where}: makes the caches of layers differ in length, which cache_implementation {cache!r} cannot hold; "
            "leave cache_implementation out."
        )


def refuse_layers(decoder: Any, policy: Policy, first: int) -> None:
    """Layers whose masks or caches cannot be cut.

    Raises:
        PolicyError: flex_attention, or a layer behind the first prune point without full attention.
    """
    config, layers = decoder.config, len(decoder.layers)
    where = f"policy {policy.name!r}"
    if attention_name(config) == "flex_attention":
        raise PolicyError(
            f"{where}: flex_attention's block masks cannot be cut inside the decoder; load the model with sdpa, eager "
            "or flash_attention_2."
        )
    if getattr(config, "num_kv_shared_layers", 0):
        raise PolicyError(
            f"{where}: acts inside the decoder, but layers of this model share keys and values, which must be of one "
            "length; remove visual tokens before the language model instead."
        )
    types = getattr(config, "layer_types", None) or ["full_attention"] * layers
    if not set(types[first:]) <= {"full_attention"}:
        raise PolicyError(
            f"{where}: prunes inside the decoder from layer {first} on, but this model has layers of types "
            f"{', '.join(sorted(set(types[first:])))} there; all must have full attention."
        )


def refuse_cache(policy: Policy, cache: Any) -> None:
    """A cache of one fixed length for all layers, which the caller brought.

    Raises:
        PolicyError: it is a static one.
    """
    if getattr(cache, "is_compileable", False):
        raise PolicyError(
            f"policy {policy.name!r}: makes the caches of layers differ in length, which a {type(cache).__name__} "
            "cannot hold; leave past_key_values out, or pass a DynamicCache."
        )


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
    prune.announce = partial(announce_span, visual_span, frames, budget)
    with prune.attached():
        yield prune


def announce_span(
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
    prompts = rows_of_prompt(columns, 0, [[plan]] * rows, columns.visual, prune.policy, layers)
    prune.start(prompts, columns.mask, columns.visual)
