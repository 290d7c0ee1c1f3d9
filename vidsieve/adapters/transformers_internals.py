"""What Vidsieve relies on in transformers beyond its public interface: private names, and assumptions about layout.

Each is read here, so that a release without it ends in one sentence that names the release, never in a patch that is
left out. `tests/adapters/test_transformers_internals.py` tests each.
"""

import copy
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vidsieve.framework.errors import ModelError

TESTED = "5.19 to 5.23"


def broken(what: str) -> ModelError:
    """The error for an assumption that does not hold in the installed release."""
    import transformers

    return ModelError(
        f"transformers {transformers.__version__}: {what}, which Vidsieve relies on. It was tested with {TESTED}: "
        "install one of these, or a newer Vidsieve."
    )


def needed(owner: Any, name: str) -> Any:
    """An attribute that must be there."""
    try:
        return getattr(owner, name)
    except AttributeError:
        raise broken(f"{type(owner).__name__} has no `{name}`") from None


# ---------------------------------------------------------------- attention: its interface, and the configuration


def attention_name(config: Any) -> str:
    """The attention implementation that modules with this configuration call; "eager" where none is named."""
    return needed(config, "_attn_implementation") or "eager"


def renamed_attention(config: Any, name: str) -> Any:
    """A shallow copy of a configuration that names another implementation; nested ones stay shared and untouched."""
    ours = copy.copy(config)
    # not through the property, which writes to nested configurations, and the copy shares those
    ours._attn_implementation_internal = name
    if attention_name(ours) != name:
        raise broken("a configuration does not read `_attn_implementation` from `_attn_implementation_internal`")
    return ours


def register_attention(name: str, function: Callable[..., Any]) -> None:
    """Give a function a name that configurations may use."""
    from transformers import AttentionInterface

    AttentionInterface.register(name, function)


def unread_configuration(module: Any) -> ModelError:
    """The error for attention that did not come through the function its configuration names."""
    return broken(f"{type(module).__name__} does not look its kernel up by its own configuration at each call")


def attention_kernel(module: Any, name: str) -> Callable[..., Any]:
    """The function that a module calls for an implementation: a registered one, or "eager" of its own file."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None and name == "eager":
        raise broken(f"the file of {type(module).__name__} has no `eager_attention_forward`")
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)


PROJECTIONS = ("q_proj", "v_proj", "o_proj")
"""What makes an attention module's queries and values, and mixes what its heads found."""


@contextmanager
def forwarding(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """While open, a module is called through `forward`; one that was put on it before comes back."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


# ---------------------------------------------------------------- decoders and their caches


def rotary_of(decoder: Any) -> Any:
    """The module that makes rotary embeddings of `position_ids`, called (hidden, position_ids)."""
    return needed(decoder, "rotary_emb")


def deepstack_step(decoder: Any) -> Callable[..., Any] | None:
    """What adds vision features behind the first layers, called (hidden, places, features); None where nothing does."""
    if "deepstack_visual_embeds" in inspect.signature(decoder.forward).parameters:
        return needed(decoder, DEEPSTACK)
    return getattr(decoder, DEEPSTACK, None)


DEEPSTACK = "_deepstack_process"
"""The method that `deepstack_step` reads, to be replaced on an instance."""


def cached_keys(cache: Any, layer: int) -> Any:
    """The keys of a layer [rows kv_heads keys dim]."""
    return needed(needed(cache, "layers")[layer], "keys")


def cached_layer(cache: Any, layer: int) -> Any:
    """A layer of a cache, with `keys` and `values` [rows kv_heads tokens dim]."""
    return needed(cache, "layers")[layer]


def grows_plainly(layer: Any) -> bool:
    """Whether a layer of a cache holds nothing but keys and values of all its tokens, which may be replaced."""
    from transformers.cache_utils import DynamicLayer

    return type(layer) is DynamicLayer


def growing_cache(config: Any) -> bool:
    """Whether the cache that `generate` makes grows in every layer, by all keys and values, and has nothing else."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    layers = needed(DynamicCache(config=config), "layers")
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def cuts_types_for_a_cache() -> bool:
    """Whether `generate` cuts `moe_mm_token_type_ids` to what a cache does not hold; 5.19 does not."""
    from transformers.generation import utils

    return hasattr(utils, "_slice_mm_encoder_output")


def beam_reorder(cache: Any) -> Callable[..., Any]:
    """What beam search calls to permute a cache's rows, to be replaced on an instance."""
    return needed(cache, "reorder_cache")


GENERATE_START = "_prepare_generation_config"
"""The method that every `generate` calls first, before the model runs, to be replaced on an instance."""


# ---------------------------------------------------------------- positions, and the vision side


def rope_index(model: Any) -> Callable[..., Any] | None:
    """What numbers a prompt on the three axes of M-RoPE; None for a model with one axis."""
    found = getattr(model.base_model, "get_rope_index", None)
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    sees = vision_encoder(model, "image") or vision_encoder(model, "video")
    if found is None and sees and "mrope_section" in rope:
        raise broken(f"{type(model.base_model).__name__} has M-RoPE, but no `get_rope_index`")
    return found


def vision_inputs(model: Any, *modalities: str) -> list[str]:
    """Names of the inputs that only the vision side reads."""
    encoders = [getattr(model.base_model, f"get_{modality}_features", None) for modality in modalities]
    read = [name for one in encoders if one is not None for name in inspect.signature(one).parameters]
    return [name for name in dict.fromkeys(read) if name != "kwargs"]


def vision_encoder(model: Any, modality: str) -> Callable[..., Any] | None:
    """What encodes "image" or "video"; its `pooler_output` is what the decoder reads. None where nothing does."""
    return getattr(model.base_model, f"get_{modality}_features", None)
