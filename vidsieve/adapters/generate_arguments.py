"""The arguments of one `generate` call, read once, and what cannot be carried out with them."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from vidsieve.adapters.adapter import Adapter, VideoModel, decoder_of
from vidsieve.adapters.prompt.reading import has_video
from vidsieve.framework.errors import InputError, ModelError


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerateArguments:
    """A call's arguments.

    named     every argument by its name
    ids       the prompt's ids; None in a call with embeddings, or without either
    cache     the cache of an earlier call, if one was given
    video     whether a video came, as pixels or as features; where frames are images, whether any did
    configs   generation configs that add settings, the call's before the model's
    """

    named: Mapping[str, Any]
    ids: Int[Tensor, "rows columns"] | None
    cache: Any
    video: bool
    configs: tuple[Any, ...]

    @classmethod
    def read(
        cls, adapter: Adapter, model: VideoModel, original: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> "GenerateArguments":
        """The arguments of `original(*args, **kwargs)`.

        Raises:
            InputError: a video came without the ids that hold its placeholders.
        """
        named = dict(inspect.signature(original).bind(*args, **kwargs).arguments)
        named |= named.pop("kwargs", {})
        ids = named.get("input_ids") if named.get("inputs") is None else named["inputs"]
        ids = ids if named.get("inputs_embeds") is None else None
        video = has_video(adapter, named)
        if ids is None and video:
            raise InputError(
                "generate: a video needs input_ids, where its placeholders stand; inputs_embeds cannot be compressed."
            )
        configs = named.get("generation_config"), getattr(model, "generation_config", None)
        return cls(named=named, ids=ids, cache=named.get("past_key_values"), video=video, configs=configs)

    def setting(self, name: str) -> Any:
        """A generation setting as `generate` will see it: the call's, its config's, or the model's."""
        found = (self.named.get(name), *(getattr(config, name, None) for config in self.configs))
        return next((value for value in found if value is not None), None)

    @cached_property
    def cached_length(self) -> int:
        """Tokens in the cache that was given."""
        return 0 if self.cache is None else int(self.cache.get_seq_length())

    @property
    def eos(self) -> list[int]:
        """Ids that end a text."""
        eos = self.setting("eos_token_id")
        return [] if eos is None else [int(one) for one in (eos if isinstance(eos, list | tuple) else [eos])]

    def pad_id(self, model: VideoModel) -> int:
        """An id for filled-up columns."""
        return filler_id(model, self.setting("pad_token_id"), *self.eos)

    @property
    def max_length(self) -> int | None:
        """The longest sequence that the call may return, where `max_new_tokens` does not decide."""
        return None if self.setting("max_new_tokens") is not None else self.setting("max_length")

    def lowered_lengths(self, removed: int) -> dict[str, int]:
        """`max_length` and `min_length` less what was removed from the prompt, which they count."""
        lowered = {}
        for name, other in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            value = self.setting(name)
            if value and removed and self.setting(other) is None:
                lowered[name] = max(int(value) - removed, 0)
        return lowered

    def mask(self, *, longer: bool = False) -> Shaped[Tensor, "rows columns"]:
        """The mask of the ids, given or inferred; with `longer`, one that was given may cover the cache as well."""
        assert self.ids is not None
        given, pad = self.named.get("attention_mask"), self.setting("pad_token_id")
        given = given[:, -self.ids.shape[1] :] if longer and given is not None else given
        return read_mask(self.ids, given, None if pad is None else int(pad), self.eos)

    def behind_cache(self) -> Int[Tensor, "rows new"]:
        """The ids behind an uncompressed cache: with a mask of another length, all are new."""
        assert self.ids is not None
        mask = self.named.get("attention_mask")
        return self.ids[:, self.cached_length :] if mask is None or mask.shape[1] == self.ids.shape[1] else self.ids

    def refuse(self, model: VideoModel, *, continued: bool) -> None:
        """Refuse settings and models that a shortened prompt cannot be run with, whatever the policy.

        Raises:
            InputError: classifier-free guidance, or the same model would generate by other ways or from the start.
            ModelError: `forward` was replaced, or layers drop the cache.
        """
        self._refuse_second_runs(model, continued=continued)
        from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor as Guidance

        guides = any(isinstance(one, Guidance) for one in self.named.get("logits_processor") or ())
        if guides or self.setting("guidance_scale") not in (None, 1, 1.0):
            raise InputError(
                "generate: classifier-free guidance runs a second prompt through the same model, which a compressed "
                "prompt's positions do not fit; leave `guidance_scale` and its logits processor out."
            )
        read = inspect.signature(model.forward).parameters
        missing = [name for name in ("position_ids", "mm_encoder_outputs") if name not in read]
        if missing:
            raise ModelError(
                f"model: the `forward` of this {type(model).__name__} was replaced or overridden without "
                f"{' and '.join(missing)}, which `generate` reads in its signature. Name the arguments, or keep the "
                "signature with functools.wraps."
            )
        dropped = any(
            one.training and getattr(one, "gradient_checkpointing", False) for one in decoder_of(model).layers
        )
        if dropped and self.setting("use_cache") is not False:
            raise ModelError(
                "model: gradient checkpointing is on and the model in train mode, where its layers drop the KV cache "
                "and `generate` forgets the prompt. Call model.eval() or model.gradient_checkpointing_disable()."
            )

    def _refuse_second_runs(self, model: VideoModel, *, continued: bool) -> None:
        """Refuse settings that make transformers generate by the same model again, by other ways or from the start.

        Raises:
            InputError: one of them is on.
        """
        for name in ("assistant_model", "prompt_lookup_num_tokens"):
            if continued and self.setting(name) is not None:
                raise InputError(
                    f"generate: `{name}` cannot continue from past_key_values, because transformers would run what is "
                    f"cached once more; leave `{name}` out, or start again without past_key_values."
                )
        if self.named.get("assistant_model") is model:
            raise InputError(
                "generate: `assistant_model` is the compressed model itself, which cannot draft for its own call; pass "
                "another model, or a copy of this one."
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


def read_mask(
    ids: Int[Tensor, "rows columns"], given: Tensor | None, pad_id: int | None, eos: Sequence[int]
) -> Shaped[Tensor, "rows columns"]:
    """The caller's mask, or the one `generate` would infer: padding where the pad id stands, unless it ends text."""
    if given is None:
        return torch.ones_like(ids) if pad_id is None or pad_id in eos else (ids != pad_id).long()
    if given.shape != ids.shape:
        raise InputError(
            f"attention_mask: must be 2-D and as long as input_ids {tuple(ids.shape)}, got {tuple(given.shape)}."
        )
    return given


def refuse_right_padding(mask: Shaped[Tensor, "rows columns"]) -> None:
    """Refuse rows that `generate` would continue from their padding, whose answers no policy can make right.

    Raises:
        InputError: a row ends in padding.
    """
    padded = (mask[:, -1] == 0).nonzero().flatten().tolist()
    if padded:
        raise InputError(
            f"attention_mask: rows {', '.join(map(str, padded))} end in padding, from which `generate` would continue "
            "them. Pad on the left: set `padding_side` of the processor's tokenizer to 'left'. (`compress` takes "
            "padding on either side.)"
        )


def filler_id(model: VideoModel, *wanted: int | None) -> int:
    """An id for filled-up columns: the first of `wanted` that the model can embed, else 0.

    They are masked, so any id that is no placeholder will do; configurations may name one beyond the vocabulary.
    """
    known = model.get_input_embeddings().weight.shape[0]
    return next((int(one) for one in wanted if one is not None and 0 <= int(one) < known), 0)
