"""What pruning inside the decoder cannot go together with, refused by name before the model runs."""

from collections.abc import Callable
from typing import Any

from vidsieve.adapters.transformers_internals import attention_name
from vidsieve.framework.errors import PolicyError
from vidsieve.framework.policy.policy import Policy

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
            f"{where}: prunes inside the decoder, but layers of this model share keys and values, which must be "
            "of one length; remove visual tokens before the language model instead."
        )
    types = getattr(config, "layer_types", None) or ["full_attention"] * layers
    if set(types[first:]) != {"full_attention"}:
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
