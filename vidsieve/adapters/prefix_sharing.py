"""Several prompts about one video: what they share is cached once, and copies of that cache go on with each prompt.

The cache was filled by a call under `applied`, so it carries what was removed and where text goes on. Prompts of
unequal length are padded between the shared columns and their own; positions are explicit and count real tokens only.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vidsieve.adapters.adapter import Adapter, VideoModel
from vidsieve.adapters.multi_turn import recall, remember
from vidsieve.adapters.prompt.columns import PER_TOKEN
from vidsieve.adapters.prompt.reading import placeholders_of
from vidsieve.adapters.prompt.shortening import visual_placeholders
from vidsieve.adapters.transformers_internals import cuts_types_for_a_cache, growing_cache, rope_index

_EXPERTS = "moe_mm_token_type_ids"


def shares_prefixes(model: VideoModel) -> bool:
    """Whether a cache of this model can be copied and gone on from with padding in its middle.

    Layers that see a window count padding as tokens, and layers of linear attention take it into their state, so all
    must be of full attention and grow with each token.
    """
    settings = getattr(model, "generation_config", None)
    if any(getattr(settings, name, None) is not None for name in ("cache_implementation", "prompt_lookup_num_tokens")):
        return False
    if getattr(settings, "use_cache", None) is False:
        return False
    if _EXPERTS in inspect.signature(model.forward).parameters and not cuts_types_for_a_cache():
        return False
    return growing_cache(model.config)


def shared_columns(
    adapter: Adapter, model: VideoModel, inputs: Mapping[str, Any], prompts: Sequence[Int[Tensor, " _"]]
) -> int:
    """How many leading ids to cache for all prompts; 0 where the prompts cannot share any that hold their video.

    They end right behind the video, in a token that no policy removes: positions go on from the last one cached.
    `inputs` are those of the first prompt.
    """
    ids = prompts[0].to(inputs["input_ids"].device)[None]
    places = placeholders_of(adapter, model.config, ids)[0]
    if not bool(places.any()):
        return 0
    end = int(places.nonzero().max()) + 1
    # with three axes text goes on behind the longest, which the last visual token need not reach
    if rope_index(model) is not None or bool(_visual(adapter, model, {**inputs, "input_ids": ids}, places)[end - 1]):
        end += 1
    head = prompts[0][:end]
    return end if all(len(one) > end and torch.equal(one[:end], head) for one in prompts) else 0


def _visual(
    adapter: Adapter, model: VideoModel, inputs: Mapping[str, Any], places: Bool[Tensor, " columns"]
) -> Bool[Tensor, " columns"]:
    """Which columns of a prompt a policy may remove."""
    flags = [visual_placeholders(one, places.device) for one in adapter.layouts(model.config, inputs)]
    return torch.zeros_like(places).masked_scatter(places, torch.cat(flags))


def first_columns(inputs: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The inputs of a prompt that ends after `count` columns."""
    per_token = {"input_ids", "attention_mask", *PER_TOKEN}
    return {name: value[:, :count] if name in per_token else value for name, value in inputs.items()}


def branched(cache: Any, rows: int) -> Any:
    """A cache of `rows` rows that each go on from the one row of `cache`, which stays as it is.

    Nothing is copied until a layer grows.
    """
    past = recall(cache)
    assert past is not None, "only a cache filled under `applied` knows what it stands for"
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in twin.layers:
        layer.keys, layer.values = (states.expand(rows, -1, -1, -1) for states in (layer.keys, layer.values))
    remember(twin, past.rows(torch.zeros(rows, dtype=torch.long)))
    return twin


def cache_bytes(cache: Any) -> int:
    """Memory that the keys and values take."""
    return sum(states.nbytes for layer in cache.layers for states in (layer.keys, layer.values))


def continued(shared: Int[Tensor, " shared"], ends: Sequence[Int[Tensor, " _"]], pad_id: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` of prompts that begin with `shared`, padded behind it to one length."""
    width = max(len(one) for one in ends)
    tails = torch.full((len(ends), width), pad_id, dtype=shared.dtype, device=shared.device)
    real = torch.zeros_like(tails)
    for row, one in enumerate(ends):
        tails[row, width - len(one) :] = one
        real[row, width - len(one) :] = 1
    head = shared.expand(len(ends), -1)
    mask = torch.cat([torch.ones_like(head), real], dim=1)
    return {"input_ids": torch.cat([head, tails], dim=1), "attention_mask": mask}
