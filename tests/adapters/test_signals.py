"""Signals: attention that frames receive, in blocks of any size; which vision layer is listened to."""

from functools import wraps
from typing import Any

import pytest
import torch
from adapters.test_llava_next_video import TestLlavaNextVideo as NextVideo
from adapters.test_qwen2_vl import TestQwen2VL as Qwen2VL
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsieve.adapters.towers import square_mean
from vidsieve.adapters.vision import signals
from vidsieve.adapters.vision.signals import received
from vidsieve.framework import registry
from vidsieve.testing import adapter_compile
from vidsieve.testing.adapter_kit import Row
from vidsieve.testing.adapter_signals import Looks, shown


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.sampled_from([1, 7, 40, 2**24]), st.booleans())
def test_blocks_of_any_size_add_up_to_the_whole_softmax(
    frames: int, heads: int, rows: int, at_once: int, class_row: bool
) -> None:
    query, key = torch.randn(2, frames, heads, rows, 4, generator=torch.Generator().manual_seed(rows))
    weights = (query @ key.transpose(2, 3) * 0.5).softmax(dim=-1)
    expected = weights[:, :, 0].mean(dim=1) if class_row else weights.mean(dim=(1, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signals, "_WEIGHTS_AT_ONCE", at_once)
        found = received(query, key, 0.5, rows - 1 if class_row else rows)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(found.sum(dim=1), torch.ones(frames))


def test_half_precision_is_read_in_float32() -> None:
    query, key = torch.randn(2, 2, 3, 5, 4).bfloat16()
    assert received(query, key, 0.5, None).dtype == torch.float32
    assert torch.equal(received(query, key, 0.5, None), received(query.float(), key.float(), 0.5, None))


@pytest.mark.parametrize(("chosen", "layer"), [(-1, 1), (-2, 0), (1, 0), (2, 1), ([-2, -1], 1), (0, 0)])
def test_the_layer_is_the_one_whose_output_becomes_the_tokens(chosen: Any, layer: int) -> None:
    model = NextVideo().build_model()
    model.config.vision_feature_layer = chosen
    tower = registry.default().models["llava-next-video"].tower
    found = tower.layer(model, {})
    modules = dict(model.named_modules())
    (name,) = [name for name, module in modules.items() if module is found]
    assert f"layers.{layer}." in name
    assert tower.layer(model, {"vision_feature_layer": -2}) is tower.layer(model, {"vision_feature_layer": 1})


def test_flash_attention_still_takes_all_frames_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    kernel = adapter_compile.flash_attn_varlen_func

    @wraps(kernel)
    def counting(q: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(q))
        return kernel(q, *args, **kwargs)

    monkeypatch.setattr(adapter_compile, "flash_attn_varlen_func", counting)
    kit = Qwen2VL()
    model = kit.build_model()
    with adapter_compile.flash_attention(model, model.config.vision_config):
        (tokens,) = shown(model, kit.make_inputs(model, Row()), Looks())
    assert calls == [4 * 24] * model.config.vision_config.depth
    assert tokens.signals["vision_attention"].shape == (4, 6)


def test_a_rest_at_the_edges_belongs_to_no_square() -> None:
    patches = torch.arange(25.0).view(1, 25, 1)
    assert square_mean(patches, 2).flatten().tolist() == [3.0, 5.0, 13.0, 15.0]


def test_signals_are_offered_where_the_tower_is_known() -> None:
    offers = {name: one.offers for name, one in registry.default().models.items()}
    every = {"vision_attention", "pre_merger_features", "pixel_difference"}
    for name in ("qwen2-vl", "qwen2.5-vl", "qwen3-vl", "llava-onevision", "llava-next-video", "video-llava"):
        assert every <= offers[name]
    assert offers["internvl3"] & every == {"vision_attention"}
    assert not offers["smolvlm2"] & every
