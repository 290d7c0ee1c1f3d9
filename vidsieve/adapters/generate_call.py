"""One call of `generate` under a policy: shorten its prompt, run it, give back what the caller expects."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from vidsieve.adapters.adapter import Adapter, VideoModel
from vidsieve.adapters.decoder.decode_kv import DecodeKV
from vidsieve.adapters.decoder.kv_report import report_kv
from vidsieve.adapters.decoder.layer_pruning import LayerPrune, refuse_settings
from vidsieve.adapters.decoder.layer_rows import rows_of_prompt
from vidsieve.adapters.generate_arguments import GenerateArguments, refuse_right_padding
from vidsieve.adapters.multi_turn import (
    Past,
    cached_columns,
    cached_layers,
    check_room,
    extending,
    new_part,
    recall,
    remember,
)
from vidsieve.adapters.prompt.caller_view import CallerView
from vidsieve.adapters.prompt.columns import PER_TOKEN, Columns
from vidsieve.adapters.prompt.positions import misreads_gaps, model_positions, original_rotation, reads_types
from vidsieve.adapters.prompt.reading import new_inputs, placeholders_of
from vidsieve.adapters.prompt.shortening import Request, Shortened, empty_report, shorten
from vidsieve.adapters.transformers_internals import rope_index, vision_inputs
from vidsieve.adapters.vision.encoding import PIXELS, encode
from vidsieve.framework.errors import InputError, PolicyError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.report import Report
from vidsieve.framework.trace import VideoTrace


def _with_kv(decode: DecodeKV, short: Shortened) -> tuple[VideoTrace, ...]:
    """The traces of a call's videos with what decode steps read of each."""
    traces, prompts = iter(short.report.traces), len(short.plans)
    found = []
    for row, plans in enumerate(short.plans):
        # those of earlier turns stand in front
        before = short.columns.visual_counts[row] - sum(plan.index.numel() for plan in plans)
        for plan in plans:
            found.append(replace(next(traces), kv=decode.trace(row, before, prompts)))
            before += plan.index.numel()
    return tuple(found)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Prompt:
    """What a call adds to its cache, or (without one) its prompt; `inputs` are the pictures' and the other arguments.

    `whole` are the ids of the conversation with it, `cached` the columns of what the cache holds.
    """

    ids: Int[Tensor, "rows columns"]
    mask: Shaped[Tensor, "rows columns"]
    inputs: Mapping[str, Any]
    whole: Int[Tensor, "rows total"]
    cached: Columns | None = None


class GenerateCall:
    """One call of `generate`."""

    def __init__(
        self, adapter: Adapter, model: VideoModel, policy: Policy, seed: int, arguments: GenerateArguments
    ) -> None:
        self.adapter, self.model, self.policy, self.seed = adapter, model, policy, seed
        self.asked = arguments
        self.given_ids = arguments.ids
        """The ids that the original `generate` is given."""

    def run(self, original: Any) -> tuple[Any, Report]:
        """Run `original` on the shortened inputs; its output as the caller would have had it, and the Report."""
        asked = self.asked
        past = None if asked.cache is None else recall(asked.cache)
        if asked.ids is None or (past is None and self._passes_untouched(asked.ids)):
            return self._untouched(original), empty_report(self.policy)
        asked.refuse(self.model, continued=past is not None)
        decode = self._decode_kv()
        prune = self._layer_prune(past)
        prompt = self._prompt(asked.ids, past)
        with torch.no_grad():
            short = self._shorten(prompt, past)
        self.given_ids = short.columns.ids
        mask = prompt.mask if past is None else asked.mask(longer=True)
        view = CallerView(asked.ids, mask, short.columns.width, asked.max_length)
        with ExitStack() as stack:
            hooked = short.gapped and misreads_gaps(self.model, asked.setting("use_cache"))
            if hooked:
                stack.enter_context(original_rotation(self.model, short.columns))
            if prune is not None:
                self._announce(prune, short, past)
                stack.enter_context(prune.attached())
            if decode is not None:
                decode.prompt = short.columns
                # of the caller's cache, or one that is returned, everything must be in its place afterwards
                decode.restores = asked.cache is not None or bool(asked.setting("return_dict_in_generate"))
                decode.held = lambda: None if prune is None else prune.held
                stack.enter_context(decode.attached())
            if short.columns.ids is not asked.ids:
                stack.enter_context(view.shown(self.model))
            if asked.cache is not None:
                check_room(asked.cache, short.columns.width + (asked.setting("max_new_tokens") or 1) - 1)
                broken_off = partial(self._past, prompt, short, prune)
                stack.enter_context(extending(asked.cache, past, broken_off))
            output = original(**self._inputs(prompt, short, view, contiguous=hooked))
        if prune is not None:
            prune.report(short.report)
        report_kv(short.report, self.policy, decode, prune)
        if decode is not None and decode.read_ratio is not None:
            short.report.traces = _with_kv(decode, short)
        return self._restore(prompt, short, prune, output), short.report

    def _decode_kv(self) -> DecodeKV | None:
        """The KV stages of the policy, ready to be attached; None without any."""
        stages = self.policy.decode_stages
        if not stages:
            return None
        if self.asked.setting("use_cache") is False:
            raise PolicyError(
                f"policy {self.policy.name!r}, stage {stages[0].label!r}: chooses among cached keys and values, but "
                "use_cache is False; leave use_cache on, or use a policy without KV stages."
            )
        return DecodeKV(
            self.model, {f"policy {self.policy.name!r}, stage {one.label!r}, prune_kv": one.stage for one in stages}
        )

    def _layer_prune(self, past: Past | None) -> LayerPrune | None:
        """Stages that shorten the prompt or its cache inside the decoder, and a cache that earlier ones cut."""
        stages = (*self.policy.layer_stages, *self.policy.evict_stages)
        if not stages and (past is None or past.held is None):
            return None
        where = f"policy {self.policy.name!r}, stage {stages[0].label!r}" if stages else "past_key_values"
        refuse_settings(where, self.asked.setting)
        return LayerPrune(self.model, self.policy, seed=self.seed)

    def _announce(self, prune: LayerPrune, short: Shortened, past: Past | None) -> None:
        """Tell the layer stages what prompt comes."""
        columns, held = short.columns, None
        if past is not None:
            held = cached_layers(past, self.asked.cache)
        placeholders = placeholders_of(self.adapter, self.model.config, columns.ids)
        layers = len(prune.decoder.layers)
        rows = rows_of_prompt(columns, short.start, short.plans, placeholders, self.policy, layers)
        prune.start(rows, columns.mask, columns.visual, short.start, held)

    def _types(self) -> dict[str, Any]:
        """`mm_token_type_ids` of a call with images only that came without: M-RoPE would see only text."""
        ids, named = self.asked.ids, self.asked.named
        images = any(named.get(name) is not None for name in PIXELS["image"])
        if (
            ids is None
            or not images
            or not reads_types(rope_index(self.model))
            or named.get("mm_token_type_ids") is not None
        ):
            return {}
        return {"mm_token_type_ids": ids.eq(self.model.config.image_token_id).to(torch.int32)}

    def _passes_untouched(self, ids: Int[Tensor, "rows columns"]) -> bool:
        """Whether there is nothing for a policy in this call: text, or images, with or without a cache."""
        length = self.asked.cached_length
        if length == 0:
            # without a cache the check for placeholders without a video is made by `shorten`
            return not self.asked.video and not bool(placeholders_of(self.adapter, self.model.config, ids).any())
        new = self.asked.behind_cache()
        if new.shape[1] == 0 or bool(placeholders_of(self.adapter, self.model.config, new).any()):
            raise InputError(
                f"input_ids: {'hold no new tokens' if new.shape[1] == 0 else 'hold video placeholders'} behind the "
                f"{length} tokens of past_key_values, which was not filled by a call under `applied`, or lost what "
                "that call left on it, so what it stands for is unknown; copy such a cache by `copy.deepcopy`, make "
                "the first turn under `applied` too, or start without past_key_values."
            )
        return True

    def _untouched(self, original: Any) -> Any:
        """The uncompressed call; what it leaves in its cache is remembered for a later turn with a video."""
        ids, cache, first = self.asked.ids, self.asked.cache, self.asked.cached_length == 0
        output = original(**self._cached_left_out(), **self._types())
        cache = getattr(output, "past_key_values", None) if cache is None else cache
        if ids is None or cache is None or not first or not bool(self.asked.mask()[:, -1].all()):
            return output
        prompt = self._prompt(ids, None)
        return self._restore(prompt, self._shorten(prompt, None), None, output)

    def _cached_left_out(self) -> Mapping[str, Any]:
        """The call's inputs without videos that an uncompressed cache holds; transformers would refuse them."""
        if self.asked.cache is None or not self.asked.video:
            return self.asked.named
        assert self.asked.ids is not None
        return new_inputs(self.adapter, self.model, self.asked.named, self.asked.ids, self.asked.behind_cache())

    def _prompt(self, ids: Int[Tensor, "rows columns"], past: Past | None) -> _Prompt:
        """What is to be shortened: all of the prompt, or what the cache does not hold yet."""
        if past is None:
            prompt = _Prompt(ids=ids, mask=self.asked.mask(), inputs=self.asked.named, whole=ids)
        else:
            cached, seen = cached_columns(past, self.asked.cache)
            new, mask = new_part(past, seen, ids, self.asked.named.get("attention_mask"))
            whole = torch.cat([past.ids[:, :seen].to(new), new], dim=1)
            inputs = new_inputs(self.adapter, self.model, self.asked.named, whole, new)
            prompt = _Prompt(ids=new, mask=mask, inputs=inputs, whole=whole, cached=cached)
        refuse_right_padding(prompt.mask)
        return prompt

    def _shorten(self, prompt: _Prompt, past: Past | None) -> Shortened:
        """The short prompt, with what the cache holds in front of it."""
        cached = prompt.cached
        new = shorten(
            Request(
                adapter=self.adapter,
                model=self.model,
                policy=self.policy,
                inputs=prompt.inputs,
                ids=prompt.ids,
                mask=prompt.mask,
                pad_id=self.asked.pad_id(self.model),
                seed=self.seed,
                start=None if cached is None else cached.positions[..., -1:] + 1,
            )
        )
        if cached is None or past is None:
            return new
        gapped = new.gapped or past.gapped
        return replace(new, columns=cached.join(new.columns), gapped=gapped, start=cached.width)

    def _inputs(self, prompt: _Prompt, short: Shortened, view: CallerView, *, contiguous: bool) -> dict[str, Any]:
        """Arguments for the original `generate`."""
        columns = short.columns
        modality = self.adapter.modality
        spent = {*self.adapter.spent, *PER_TOKEN, "inputs", "mm_encoder_outputs"}
        spent |= {*vision_inputs(self.model, "image", "video")}
        call = {name: value for name, value in prompt.inputs.items() if name not in spent}
        call |= {"input_ids": columns.ids, "attention_mask": columns.mask, **columns.others}
        call["position_ids"] = model_positions(columns, contiguous=contiguous)
        features = {n: f for n, f in (prompt.inputs.get("mm_encoder_outputs") or {}).items() if n != modality}
        features |= self._images(prompt)
        features |= {} if short.features is None else {modality: short.features}
        call |= {"mm_encoder_outputs": features} if features else {}
        if self.policy.kv_stages or self.policy.layer_stages:
            # choosing reads counts back from the device, which a compiled step cannot
            call["disable_compile"] = True
        call |= self.asked.lowered_lengths(view.removed)
        if call.get("streamer") is not None:
            call["streamer"] = view.streamer(call["streamer"])
        return call

    def _images(self, prompt: _Prompt) -> dict[str, Any]:
        """Features of the images beside videos: some models take features of all pictures, or of none."""
        if self.adapter.modality == "image":
            return {}
        with torch.no_grad():
            output = encode(self.model, "image", prompt.inputs)
        return {} if output is None else {"image": output}

    def _continues(self, short: Shortened, sequences: Any) -> bool:
        """Whether an output begins with the short prompt; that of a `custom_generate` may be anything."""
        if self.asked.named.get("custom_generate") is None:
            return True
        ids = short.columns.ids
        if not isinstance(sequences, Tensor) or sequences.dim() != 2 or sequences.shape[0] % ids.shape[0]:
            return False
        prompt = ids.repeat_interleave(sequences.shape[0] // ids.shape[0], dim=0).to(sequences.device)
        return torch.equal(sequences[:, : ids.shape[1]], prompt)

    def _restore(self, prompt: _Prompt, short: Shortened, prune: LayerPrune | None, output: Any) -> Any:
        """The output with the original prompt in its sequences; its cache is remembered for a next turn."""
        sequences, ids = output if isinstance(output, Tensor) else getattr(output, "sequences", None), self.asked.ids
        if sequences is None or ids is None or not self._continues(short, sequences):
            return output
        copies = sequences.shape[0] // ids.shape[0]
        new = sequences[:, short.columns.width :]
        asked = torch.cat([ids.repeat_interleave(copies, dim=0).to(new), new], dim=1)
        cache = getattr(output, "past_key_values", None)
        cache = self.asked.cache if cache is None else cache
        if cache is not None:
            single = copies == 1 and (self.asked.setting("num_beams") or 1) == 1
            remember(cache, self._past(prompt, short, prune, new, single=single))
        if isinstance(output, Tensor):
            return asked
        output.sequences = asked
        return output

    def _past(
        self,
        prompt: _Prompt,
        short: Shortened,
        prune: LayerPrune | None,
        new: Int[Tensor, "rows new"] | None = None,
        *,
        single: bool = True,
    ) -> Past:
        """What the call leaves in its cache, with the `new` ids that it returned."""
        return Past(
            ids=torch.cat([prompt.whole.to(new), new], dim=1) if new is not None and single else prompt.whole,
            prompt=prompt.whole.shape[1],
            columns=short.columns,
            gapped=short.gapped,
            held=None if prune is None else prune.held,
            single=single,
        )
