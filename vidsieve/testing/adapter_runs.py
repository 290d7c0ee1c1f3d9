"""Running a model with and without a policy, and looking for what a library could leave behind."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import transformers
from jaxtyping import Float
from torch import Tensor

import vidsieve
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.report import Report
from vidsieve.testing.adapter_kit import KeepAll, KeepRandom, PromptKit, Row, policy_of, with_types

STEPS = 4
EMPTY = policy_of()
ALL = policy_of(KeepAll(), ratio=1.0)
HALF = policy_of(KeepRandom(), ratio=0.5)
BATCHES = {
    "one prompt": (Row(),),
    "padded batch": (Row(words=4), Row(seed=1, words=9)),
    "two videos": (Row(videos=2),),
    "uneven batch": (Row(videos=2, words=4), Row(seed=1, words=9)),
}
HARDEST = {name: BATCHES[name] for name in ("two videos", "uneven batch")}
"""The batches that hold what the others do: enough where every family repeats a law."""
FEATURES_CAN_BE_SLICED = hasattr(transformers.generation.utils, "_slice_mm_encoder_output")
"""Whether this transformers is new enough to cut features for chunks, and to regroup them for beams in every model."""
needs_chunks = pytest.mark.skipif(
    not FEATURES_CAN_BE_SLICED,
    reason="this transformers cannot prefill a prompt with pictures in chunks",
)
CHUNKS = pytest.param({"prefill_chunk_size": 7}, marks=needs_chunks, id="chunks")
_USES = {
    "num_beams": "beams",
    "num_return_sequences": "beams",
    "prefill_chunk_size": "chunks",
    "cache_implementation": "static cache",
}
"""Options of `generate` that not every family can take. Several answers to a prompt repeat features as beams do."""
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
    """`PromptKit` with a fresh model a test.

    `cannot` names what transformers itself cannot do with this family and a video: "beams", "chunks", "images" (beside
    a video), "static cache", "lookup" (prompt-lookup decoding), "no cache", "crop" (of a cache), "uneven videos" (of
    different lengths in one call), "flat positions" (it shows its layers M-RoPE positions), "second turn" (from a
    cache). Laws about it are skipped.
    """

    tolerance: float = 2e-5
    bit_equal: bool = True
    unpatched_beams_work: bool = True
    cannot: frozenset[str] = frozenset()

    def same(self, found: Tensor, expected: Tensor) -> bool:
        """Equal in every bit, or within `tolerance` where a family is not `bit_equal` to its own language model."""
        if self.bit_equal:
            return torch.equal(found, expected)
        return torch.allclose(found, expected, atol=self.tolerance)

    def uses(self, *names: str) -> None:
        """Skip a law about what transformers cannot do with this family."""
        for name in self.cannot.intersection(names):
            pytest.skip(f"transformers cannot do {name} with this family")

    def uses_options(self, options: Mapping[str, Any]) -> None:
        """The same, told by options of `generate`."""
        self.uses(*(what for option, what in _USES.items() if option in options))

    @pytest.fixture(scope="class")
    @classmethod
    def built(cls) -> Any:
        """The tiny model, built once; no test may touch it."""
        return cls().build_model()

    @pytest.fixture
    def model(self, built: Any) -> Any:
        """A fresh tiny model."""
        return copy.deepcopy(built)


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
