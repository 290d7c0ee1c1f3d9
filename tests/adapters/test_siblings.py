"""Mixture-of-experts siblings share their family's adapter: with tokens removed they decode as they should."""

from typing import Any

import pytest
import torch
from adapters.test_glm4v import TestGlm4V as Glm4V
from adapters.test_qwen3_5 import TestQwen35 as Qwen35
from adapters.test_qwen3_vl import TestQwen3VL as Qwen3VL
from transformers import AutoConfig, AutoModelForImageTextToText

from vidsieve.testing import AdapterContract
from vidsieve.testing.adapter_kit import HALF, STEPS, Row, kept_columns, logits, rows_removed, run

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_routed_experts": 4}
EXPERTS |= {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}
EXPERTS |= {"shared_expert_intermediate_size": 32}


@pytest.mark.parametrize(
    ("kit", "name"), [(Qwen3VL(), "qwen3_vl_moe"), (Qwen35(), "qwen3_5_moe"), (Glm4V(), "glm4v_moe")]
)
def test_a_sibling_decodes_as_its_language_model_with_rows_taken_out(kit: AdapterContract, name: str) -> None:
    model = sibling(kit.build_model().config, name)
    inputs = kit.make_inputs(model, Row(videos=2))
    output, report = run(model, HALF, inputs)
    assert report.attained_ratio == 0.5
    expected = rows_removed(model, inputs, kept_columns(model, inputs, report), STEPS)
    assert torch.allclose(logits(output)[0], expected, atol=2e-5)


def sibling(config: Any, name: str) -> Any:
    """A tiny model of the sibling's class with the sizes of this configuration."""
    document = config.to_dict()
    text, vision = document["text_config"], document["vision_config"]
    for part in (document, text, vision):
        part.pop("model_type"), part.pop("architectures", None)
    text["rope_parameters"]["partial_rotary_factor"] = 1.0
    document |= {"text_config": text | EXPERTS, "vision_config": vision}
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(AutoConfig.for_model(name, **document)).eval()
