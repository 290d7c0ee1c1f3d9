"""Pruning inside a decoder that adds vision features behind its first layers, and one that mixes layer types."""

from typing import Any

import pytest
import torch
from transformers import Qwen3VLTextConfig, Qwen3VLTextModel

from vidsieve.adapters.decoder.layer_pruning import attach_layers
from vidsieve.framework.errors import PolicyError
from vidsieve.testing.adapter_decoder_kit import TopLayer, hidden_columns
from vidsieve.testing.adapter_kit import policy_of

SPAN = (4, 12)


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    config = Qwen3VLTextConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
    )
    return Qwen3VLTextModel(config).eval()


@torch.no_grad()
def test_features_added_behind_a_cut_reach_the_tokens_that_are_left(model: Any) -> None:
    draw = torch.Generator().manual_seed(1)
    embeds = torch.randn(1, 20, 32, generator=draw)
    visual = torch.zeros(1, 20, dtype=torch.bool)
    visual[:, SPAN[0] : sum(SPAN)] = True
    deep = [torch.randn(SPAN[1], 32, generator=draw) for _ in range(3)]
    given = {"inputs_embeds": embeds, "visual_pos_masks": visual, "deepstack_visual_embeds": deep, "use_cache": True}
    with attach_layers(model, policy_of(TopLayer(keep_ratio=0.5, after=(0,))), SPAN) as prune:
        output = model(**given)
        assert prune.prefill is not None
        left = prune.prefill.rows[0].places
    gone = torch.ones(5, 20, dtype=torch.bool)
    gone[:, left] = False
    gone[0] = False
    positions = torch.arange(20).expand(3, 1, 20)
    with hidden_columns(model, gone, positions, False, {}):
        expected = model(**given | {"use_cache": False})
    assert left.numel() == 14
    assert torch.allclose(output.last_hidden_state[0], expected.last_hidden_state[0, left], atol=1e-5)
    assert "_deepstack_process" not in vars(model)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layer_types": ["full_attention", "sliding_attention", *["full_attention"] * 3]}, "must have full attention"),
        ({"num_kv_shared_layers": 2}, "share keys and values"),
        ({"_attn_implementation_internal": "flex_attention"}, "flex_attention"),
    ],
)
def test_decoders_that_cannot_be_cut_are_refused(model: Any, settings: dict[str, Any], words: str) -> None:
    for name, value in settings.items():
        setattr(model.config, name, value)
    with pytest.raises(PolicyError, match=words), attach_layers(model, policy_of(TopLayer(keep_ratio=0.5)), SPAN):
        pass
