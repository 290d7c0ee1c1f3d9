"""One call of `generate` under a policy: read what was asked, run the short prompt, give back what was expected."""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from vidsieve.adapters.adapter import Adapter, VideoModel, decoder_of
from vidsieve.adapters.decoder.cached_columns import CachedColumns
from vidsieve.adapters.decoder.decode_kv import DecodeKV
from vidsieve.adapters.decoder.layer_pruning import LayerPrune
from vidsieve.adapters.decoder.layer_refusals import refuse_settings
from vidsieve.adapters.decoder.layer_rows import rows_of_prompt
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
from vidsieve.adapters.prompt.columns import PER_TOKEN
from vidsieve.adapters.prompt.new_pictures import new_inputs
from vidsieve.adapters.prompt.positions import misreads_gaps, model_positions, original_rotation, reads_types
from vidsieve.adapters.prompt.reading import filler_id, has_video, placeholders_of, read_mask, refuse_right_padding
from vidsieve.adapters.prompt.shortening import Request, Shortened, empty_report, shorten
from vidsieve.adapters.vision.encoding import PIXELS, encode, vision_names
from vidsieve.framework.errors import InputError, ModelError, PolicyError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.report import Report


class GenerateCall:
    """One call of `generate`."""

    def __init__(self, adapter: Adapter, model: VideoModel, policy: Policy, seed: int) -> None:
        self.adapter, self.model, self.policy, self.seed = adapter, model, policy, seed
        self.asked: dict[str, Any] = {}
        self.inputs: dict[str, Any] = {}
        self.whole = torch.empty(0, 0, dtype=torch.long)
        self.prompt: Tensor | None = None
        """The ids that the original `generate` is given."""

    def run(self, original: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Report]:
        """Run `original` on the shortened inputs; its output as the caller would have had it, and the Report."""
        self.asked = _bound(original, args, kwargs)
        past = recall(self.asked.get("past_key_values"))
        ids = self.prompt = self._ids()
        if ids is None or (past is None and self._passes_untouched(ids)):
            return self._untouched(original, ids), empty_report(self.policy)
        self._refuse_guidance()
        self._refuse_model()
        self._refuse_second_runs(past)
        decode = self._decode_kv()
        prune = self._layer_prune(past)
        with torch.no_grad():
            short = self._shorten(ids, past)
        self.prompt = short.columns.ids
        with ExitStack() as stack:
            hooked = short.gapped and misreads_gaps(self.model, self.setting("use_cache"))
            if hooked:
                stack.enter_context(original_rotation(self.model, short.columns))
            if prune is not None:
                self._announce(prune, short, past)
                stack.enter_context(prune.attached())
            if decode is not None:
                decode.prompt = short.columns
                decode.held = lambda: None if prune is None else prune.held
                stack.enter_context(decode.attached())
            view = self._view(ids, short)
            stack.enter_context(view.shown(self.model))
            cache = self.asked.get("past_key_values")
            check_room(cache, short.columns.width + (self.setting("max_new_tokens") or 1) - 1)
            stack.enter_context(
                extending(cache, past, lambda: self._past(short, None if prune is None else prune.held))
            )
            output = original(**self._inputs(short, view, contiguous=hooked))
        if decode is not None and decode.read_ratio is not None:
            ran = {bound.label for bound in self.policy.kv_stages}
            short.report.kv_ratio = decode.read_ratio
            short.report.not_run = tuple(label for label in short.report.not_run if label not in ran)
        if prune is not None:
            prune.report(short.report)
        return self._restore(ids, short, output, None if prune is None else prune.held), short.report

    def setting(self, name: str) -> Any:
        """A generation setting as `generate` will see it: the call's, its config's, or the model's."""
        for value in (
            self.asked.get(name),
            getattr(self.asked.get("generation_config"), name, None),
            getattr(getattr(self.model, "generation_config", None), name, None),
        ):
            if value is not None:
                return value
        return None

    def _decode_kv(self) -> DecodeKV | None:
        """The KV stages of the policy, ready to be attached; None without any."""
        stages = self.policy.kv_stages
        if not stages:
            return None
        if self.setting("use_cache") is False:
            raise PolicyError(
                f"policy {self.policy.name!r}, stage {stages[0].label!r}: chooses among cached keys and values, but "
                "use_cache is False; leave use_cache on, or use a policy without KV stages."
            )
        return DecodeKV(
            self.model, {f"policy {self.policy.name!r}, stage {one.label!r}, prune_kv": one.stage for one in stages}
        )

    def _layer_prune(self, past: Past | None) -> LayerPrune | None:
        """The layer stages of the policy, and a cache that earlier ones cut; None without either."""
        stages = self.policy.layer_stages
        if not stages and (past is None or past.held is None):
            return None
        where = f"policy {self.policy.name!r}, stage {stages[0].label!r}" if stages else "past_key_values"
        refuse_settings(where, self.setting)
        return LayerPrune(self.model, self.policy, seed=self.seed)

    def _announce(self, prune: LayerPrune, short: Shortened, past: Past | None) -> None:
        """Tell the layer stages what prompt comes."""
        columns, held = short.columns, None
        if past is not None:
            held = cached_layers(past, self.asked["past_key_values"])
        placeholders = placeholders_of(self.adapter, self.model.config, columns.ids)
        layers = len(prune.decoder.layers)
        rows = rows_of_prompt(columns, short.start, short.plans, placeholders, self.policy, layers)
        prune.start(rows, columns.mask, short.start, held)

    def _types(self, ids: Tensor | None) -> dict[str, Any]:
        """`mm_token_type_ids` of a call with images only that came without: M-RoPE would see only text."""
        images = any(self.asked.get(name) is not None for name in PIXELS["image"])
        if ids is None or not images or not reads_types(self.model) or self.asked.get("mm_token_type_ids") is not None:
            return {}
        return {"mm_token_type_ids": ids.eq(self.model.config.image_token_id).to(torch.int32)}

    def _ids(self) -> Int[Tensor, "rows columns"] | None:
        """The prompt's ids; None when the call has none, which is fine as long as it has no video either."""
        ids = self.asked.get("inputs") if self.asked.get("inputs") is not None else self.asked.get("input_ids")
        if (ids is None or self.asked.get("inputs_embeds") is not None) and has_video(self.adapter, self.asked):
            raise InputError(
                "generate: a video needs input_ids, where its placeholders stand; inputs_embeds cannot be compressed."
            )
        return None if self.asked.get("inputs_embeds") is not None else ids

    def _passes_untouched(self, ids: Int[Tensor, "rows columns"]) -> bool:
        """Whether there is nothing for a policy in this call: text, or images, with or without a cache."""
        cache = self.asked.get("past_key_values")
        length = 0 if cache is None else int(cache.get_seq_length())
        if length == 0:
            # without a cache the check for placeholders without a video is made by `shorten`
            video = has_video(self.adapter, self.asked)
            return not video and not bool(placeholders_of(self.adapter, self.model.config, ids).any())
        new = self._behind(ids, length)
        if new.shape[1] == 0 or bool(placeholders_of(self.adapter, self.model.config, new).any()):
            raise InputError(
                f"input_ids: {'hold no new tokens' if new.shape[1] == 0 else 'hold video placeholders'} behind the "
                f"{length} tokens of past_key_values, which was not filled by a call under `applied`, or lost what "
                "that call left on it, so what it stands for is unknown; copy such a cache by `copy.deepcopy`, make "
                "the first turn under `applied` too, or start without past_key_values."
            )
        return True

    def _untouched(self, original: Any, ids: Int[Tensor, "rows columns"] | None) -> Any:
        """The uncompressed call; what it leaves in its cache is remembered for a later turn with a video."""
        cache = self.asked.get("past_key_values")
        first = ids is not None and (cache is None or int(cache.get_seq_length()) == 0)
        output = original(**self._cached_left_out(ids), **self._types(ids))
        if ids is None or not first or (cache is None and getattr(output, "past_key_values", None) is None):
            return output
        if not bool(self._read_mask(ids, self.asked.get("attention_mask"))[:, -1].all()):
            return output
        return self._restore(ids, self._shorten(ids, None), output, None)

    def _behind(self, ids: Int[Tensor, "rows columns"], length: int) -> Int[Tensor, "rows new"]:
        """The ids behind an uncompressed cache of `length` tokens: with a mask of another length, all are new."""
        mask = self.asked.get("attention_mask")
        return ids[:, length:] if mask is None or mask.shape[1] == ids.shape[1] else ids

    def _cached_left_out(self, ids: Int[Tensor, "rows columns"] | None) -> dict[str, Any]:
        """The call's inputs without videos that an uncompressed cache holds; transformers would refuse them."""
        cache = self.asked.get("past_key_values")
        if ids is None or cache is None or not has_video(self.adapter, self.asked):
            return self.asked
        behind = self._behind(ids, int(cache.get_seq_length()))
        return new_inputs(self.adapter, self.model, self.asked, ids, behind)

    def _refuse_guidance(self) -> None:
        from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor as Guidance

        processors = self.asked.get("logits_processor") or ()
        if self.setting("guidance_scale") not in (None, 1, 1.0) or any(isinstance(one, Guidance) for one in processors):
            raise InputError(
                "generate: classifier-free guidance runs a second prompt through the same model, which a compressed "
                "prompt's positions do not fit; leave `guidance_scale` and its logits processor out."
            )

    def _refuse_model(self) -> None:
        """A model that transformers could not run a shortened prompt on."""
        named = inspect.signature(self.model.forward).parameters
        missing = [name for name in ("position_ids", "mm_encoder_outputs") if name not in named]
        if missing:
            raise ModelError(
                f"model: the `forward` of this {type(self.model).__name__} was replaced or overridden without "
                f"{' and '.join(missing)}, which `generate` reads in its signature. Name the arguments, or keep the "
                "signature with functools.wraps."
            )
        layers = decoder_of(self.model).layers
        dropped = any(layer.training and getattr(layer, "gradient_checkpointing", False) for layer in layers)
        if dropped and self.setting("use_cache") is not False:
            raise ModelError(
                "model: gradient checkpointing is on and the model in train mode, where its layers drop the KV cache "
                "and `generate` forgets the prompt. Call model.eval() or model.gradient_checkpointing_disable()."
            )

    def _refuse_second_runs(self, past: Past | None) -> None:
        """Settings that make transformers generate by the same model again, outside `generate`, or from the start."""
        for name in ("assistant_model", "prompt_lookup_num_tokens"):
            if past is not None and self.setting(name) is not None:
                raise InputError(
                    f"generate: `{name}` cannot continue from past_key_values, because transformers would run what is "
                    f"cached once more; leave `{name}` out, or start again without past_key_values."
                )
        if self.asked.get("assistant_model") is self.model:
            raise InputError(
                "generate: `assistant_model` is the compressed model itself, which cannot draft for its own call; pass "
                "another model, or a copy made before the block."
            )
        for name in ("assistant_early_exit", "use_mtp"):
            if self.setting(name):
                raise InputError(
                    f"generate: `{name}` drafts by the compressed model itself, in passes that the policy cannot tell "
                    f"from its own; leave `{name}` out. `assistant_model` and `prompt_lookup_num_tokens` can be used."
                )
        if self.setting("cache_implementation") == "paged":
            raise InputError(
                "generate: `cache_implementation` 'paged' is continuous batching, which takes ids without videos; "
                "leave it out."
            )

    def _pad_id(self) -> int:
        """An id for filled-up columns."""
        return filler_id(self.model, self.setting("pad_token_id"), *self._eos())

    def _eos(self) -> list[int]:
        eos = self.setting("eos_token_id")
        return [] if eos is None else [int(one) for one in (eos if isinstance(eos, list | tuple) else [eos])]

    def _shorten(self, ids: Int[Tensor, "rows columns"], past: Past | None) -> Shortened:
        """The short prompt, with what the cache holds in front of it."""
        mask = self.asked.get("attention_mask")
        request: dict[str, Any] = dict(
            adapter=self.adapter, model=self.model, policy=self.policy, seed=self.seed, pad_id=self._pad_id()
        )
        if past is None:
            mask = self._read_mask(ids, mask)
            refuse_right_padding(mask)
            self.inputs, self.whole = self.asked, ids
            return shorten(Request(inputs=self.asked, ids=ids, mask=mask, **request))
        columns, seen = cached_columns(past, self.asked["past_key_values"])
        ids, mask = new_part(past, seen, ids, mask)
        refuse_right_padding(mask)
        self.whole = torch.cat([past.ids[:, :seen].to(ids), ids], dim=1)
        self.inputs = new_inputs(self.adapter, self.model, self.asked, self.whole, ids)
        start = columns.positions[..., -1:] + 1
        new = shorten(Request(inputs=self.inputs, ids=ids, mask=mask, start=start, **request))
        return Shortened(
            columns=columns.join(new.columns),
            features=new.features,
            report=new.report,
            gapped=new.gapped or past.gapped,
            plans=new.plans,
            start=columns.width,
        )

    def _view(self, ids: Int[Tensor, "rows columns"], short: Shortened) -> CallerView:
        """The prompt as the caller gave it, for the rules of the call."""
        mask = self.asked.get("attention_mask")
        mask = self._read_mask(ids, None if mask is None else mask[:, -ids.shape[1] :])
        longest = None if self.setting("max_new_tokens") is not None else self.setting("max_length")
        return CallerView(ids, mask, short.columns.width, longest)

    def _read_mask(self, ids: Int[Tensor, "rows columns"], mask: Tensor | None) -> Tensor:
        """The mask of these ids, given or inferred."""
        pad = self.setting("pad_token_id")
        return read_mask(ids, mask, None if pad is None else int(pad), self._eos())

    def _inputs(self, short: Shortened, view: CallerView, *, contiguous: bool) -> dict[str, Any]:
        """Arguments for the original `generate`."""
        columns = short.columns
        modality = self.adapter.modality
        spent = {*self.adapter.spent, *PER_TOKEN, "inputs", "mm_encoder_outputs"}
        spent |= {*vision_names(self.model, "image"), *vision_names(self.model, "video")}
        call = {name: value for name, value in self.inputs.items() if name not in spent}
        call |= {"input_ids": columns.ids, "attention_mask": columns.mask, **columns.others}
        call["position_ids"] = model_positions(columns, contiguous=contiguous)
        features = {n: f for n, f in (self.inputs.get("mm_encoder_outputs") or {}).items() if n != modality}
        features |= self._images()
        features |= {} if short.features is None else {modality: short.features}
        call |= {"mm_encoder_outputs": features} if features else {}
        if self.policy.kv_stages or self.policy.layer_stages:
            # choosing reads counts back from the device, which a compiled step cannot
            call["disable_compile"] = True
        call |= self._lengths(view.removed)
        if call.get("streamer") is not None:
            call["streamer"] = view.streamer(call["streamer"])
        return call

    def _images(self) -> dict[str, Any]:
        """Features of the images beside videos: some models take features of all pictures, or of none."""
        if self.adapter.modality == "image":
            return {}
        with torch.no_grad():
            output = encode(self.model, "image", self.inputs)
        return {} if output is None else {"image": output}

    def _lengths(self, removed: int) -> dict[str, int]:
        """`max_length` and `min_length` count the prompt: lower them by what was removed from it."""
        lowered = {}
        for name, other in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            value = self.setting(name)
            if value and removed and self.setting(other) is None:
                lowered[name] = max(int(value) - removed, 0)
        return lowered

    def _continues(self, short: Shortened, sequences: Any) -> bool:
        """Whether an output begins with the short prompt; that of a `custom_generate` may be anything."""
        if self.asked.get("custom_generate") is None:
            return True
        ids = short.columns.ids
        if not isinstance(sequences, Tensor) or sequences.dim() != 2 or sequences.shape[0] % ids.shape[0]:
            return False
        prompt = ids.repeat_interleave(sequences.shape[0] // ids.shape[0], dim=0).to(sequences.device)
        return torch.equal(sequences[:, : ids.shape[1]], prompt)

    def _restore(
        self,
        ids: Int[Tensor, "rows columns"],
        short: Shortened,
        output: Any,
        held: tuple[CachedColumns | None, ...] | None,
    ) -> Any:
        """The output with the original prompt in its sequences; its cache is remembered for a next turn."""
        sequences = output if isinstance(output, Tensor) else getattr(output, "sequences", None)
        if sequences is None or not self._continues(short, sequences):
            return output
        copies = sequences.shape[0] // ids.shape[0]
        new = sequences[:, short.columns.width :]
        prompt = ids.repeat_interleave(copies, dim=0).to(sequences.device)
        asked = torch.cat([prompt, new], dim=1)
        cache = getattr(output, "past_key_values", None)
        cache = self.asked.get("past_key_values") if cache is None else cache
        if cache is not None:
            single = copies == 1 and (self.setting("num_beams") or 1) == 1
            remember(cache, self._past(short, held, new, single=single))
        if isinstance(output, Tensor):
            return asked
        output.sequences = asked
        return output

    def _past(
        self,
        short: Shortened,
        held: tuple[CachedColumns | None, ...] | None,
        new: Int[Tensor, "rows new"] | None = None,
        *,
        single: bool = True,
    ) -> Past:
        """What the call leaves in its cache, with the `new` ids that it returned."""
        return Past(
            ids=torch.cat([self.whole.to(new), new], dim=1) if new is not None and single else self.whole,
            prompt=self.whole.shape[1],
            columns=short.columns,
            gapped=short.gapped,
            held=held,
            single=single,
        )


def _bound(original: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of the call by name."""
    bound = dict(inspect.signature(original).bind(*args, **kwargs).arguments)
    bound.update(bound.pop("kwargs", {}))
    return bound
