"""Running a model with and without a policy, and looking for what a library could leave behind."""

from typing import Any

import pytest
import torch
import transformers
from jaxtyping import Float
from torch import Tensor

import vidsieve
from vidsieve.framework.policy import Policy
from vidsieve.framework.report import Report
from vidsieve.framework.testing.adapter_kit import KeepAll, KeepRandom, PromptKit, Row, policy_of, with_types

STEPS = 6
EMPTY = policy_of()
ALL = policy_of(KeepAll(), ratio=1.0)
HALF = policy_of(KeepRandom(), ratio=0.5)
BATCHES = {
    "one prompt": (Row(),),
    "padded batch": (Row(words=4), Row(seed=1, words=9)),
    "two videos": (Row(videos=2),),
    "uneven batch": (Row(videos=2, words=4), Row(seed=1, words=9)),
}
FEATURES_CAN_BE_SLICED = hasattr(transformers.generation.utils, "_slice_mm_encoder_output")
"""Whether this transformers is new enough to cut features for chunks, and to regroup them for beams in every model."""
needs_chunks = pytest.mark.skipif(
    not FEATURES_CAN_BE_SLICED,
    reason="this transformers cannot prefill a prompt with pictures in chunks",
)
CHUNKS = pytest.param({"prefill_chunk_size": 7}, marks=needs_chunks, id="chunks")
_OPTIONS = {"max_new_tokens": STEPS, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}


def unpatched(model: Any, inputs: dict[str, Any], **options: Any) -> Any:
    """What `generate` gives without us; M-RoPE models are silently wrong without `mm_token_type_ids`."""
    return model.generate(**with_types(model, inputs), **(_OPTIONS | options))


def run(model: Any, policy: Policy, inputs: dict[str, Any], **options: Any) -> tuple[Any, Report]:
    """What `generate` gives under a policy, and the report."""
    with vidsieve.applied(model, policy) as handle:
        output = model.generate(**inputs, **(_OPTIONS | options))
    return output, handle.reports[-1]


def logits(output: Any) -> Float[Tensor, "rows steps vocabulary"]:
    """Logits of all steps."""
    return torch.stack(output.logits, dim=1)


class ModelKit(PromptKit):
    """`PromptKit` with a fresh model a test."""

    tolerance: float = 2e-5
    unpatched_beams_work: bool = True

    @pytest.fixture
    def model(self) -> Any:
        """A fresh tiny model."""
        return self.build_model()


def traces(model: Any) -> list[Any]:
    """What a library could leave behind: instance attributes, hooks and attention settings of every module."""
    found: list[Any] = []
    for name, module in model.named_modules():
        own = {
            key: id(value) for key, value in vars(module).items() if not key.startswith("_") and key != "rope_deltas"
        }
        hooks = (len(module._forward_pre_hooks), len(module._forward_hooks))
        config = getattr(module, "config", None)
        found.append((name, own, hooks, getattr(config, "_attn_implementation", None)))
    return found
