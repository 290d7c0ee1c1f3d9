"""Each assumption about transformers beyond its public interface: that it holds, and the error where it does not."""

import copy
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from adapters import test_llava_onevision, test_qwen3_vl
from torch import nn

import vidsieve.adapters.transformers_internals as internals
from vidsieve.adapters.attention_taps import AttentionCall, keys_only, queries_and_keys, tapped
from vidsieve.framework.errors import ModelError
from vidsieve.testing.adapter_decoder_kit import TopKV
from vidsieve.testing.adapter_kit import Row, policy_of, run

RELEASE = f"transformers {transformers.__version__}".replace(".", r"\.")


@pytest.fixture(scope="module")
def qwen3() -> Any:
    """M-RoPE and DeepStack; no test may touch it."""
    return test_qwen3_vl.TestQwen3VL().build_model()


@pytest.fixture(scope="module")
def one_axis() -> Any:
    """A model with one position axis; no test may touch it."""
    return test_llava_onevision.TestLlavaOnevision().build_model()


def test_attention_is_named_in_the_configuration_and_a_renamed_copy_leaves_it(qwen3: Any) -> None:
    config = qwen3.get_decoder().layers[0].self_attn.config
    assert internals.attention_name(config) == "sdpa"
    assert internals.attention_name(internals.renamed_attention(config, "other")) == "other"
    assert internals.attention_name(config) == internals.attention_name(qwen3.config) == "sdpa"
    assert internals.attention_name(SimpleNamespace(_attn_implementation=None)) == "eager"


@pytest.mark.parametrize("name", ["_attn_implementation", "_attn_implementation_internal"])
def test_a_configuration_without_these_names_is_an_error(name: str) -> None:
    config = SimpleNamespace() if name == "_attn_implementation" else SimpleNamespace(_attn_implementation="sdpa")
    with pytest.raises(ModelError, match=f"{RELEASE}.*_attn_implementation.*install"):
        internals.renamed_attention(config, "other")


def test_kernels_are_those_of_the_registry_or_eager_of_the_modules_file(qwen3: Any) -> None:
    attention = qwen3.get_decoder().layers[0].self_attn
    home = inspect.getmodule(type(attention))
    assert internals.attention_kernel(attention, "eager") is home.eager_attention_forward  # type: ignore[union-attr]
    assert internals.attention_kernel(attention, "sdpa").__name__ == "sdpa_attention_forward"
    internals.register_attention("under-test", print)
    assert internals.attention_kernel(attention, "under-test") is print
    with pytest.raises(ModelError, match=f"{RELEASE}.*Linear has no `eager_attention_forward`"):
        internals.attention_kernel(nn.Linear(1, 1), "eager")


def test_attention_that_keeps_its_kernel_is_an_error_not_a_policy_without_effect(one_axis: Any) -> None:
    model, kit = copy.deepcopy(one_axis), test_llava_onevision.TestLlavaOnevision()
    decoder = model.get_decoder()
    hidden = torch.zeros(1, 3, decoder.config.hidden_size)
    embeddings = decoder.rotary_emb(hidden, torch.arange(3)[None])
    asked = torch.tensor([[2]])
    assert queries_and_keys(decoder.layers[1], 1, hidden, embeddings, asked).layer == 1
    for layer in decoder.layers:
        layer.self_attn = _KeepsKernel(layer.self_attn)
    with pytest.raises(ModelError, match=f"{RELEASE}.*_KeepsKernel does not look"):
        queries_and_keys(decoder.layers[1], 1, hidden, embeddings, asked)
    with pytest.raises(ModelError, match=f"{RELEASE}.*_KeepsKernel does not look"):
        run(model, policy_of(TopKV()), kit.make_inputs(model, Row()))


def test_queries_and_keys_of_a_layer_are_those_of_a_whole_pass(one_axis: Any) -> None:
    decoder = copy.deepcopy(one_axis).get_decoder()
    layer, draw = decoder.layers[1], torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 6, decoder.config.hidden_size, generator=draw)
    embeddings = decoder.rotary_emb(hidden, torch.arange(6).expand(2, -1))
    whole: list[AttentionCall] = []

    def noted(call: AttentionCall) -> Any:
        whole.append(call)
        return call.run(call.key, call.value, call.mask)

    asked = torch.tensor([[3, 5], [0, 4]])
    forwards = [vars(part).get("forward") for part in layer.modules()]
    with torch.no_grad():
        with tapped({1: layer.self_attn}, noted):
            layer.self_attn(layer.input_layernorm(hidden), position_embeddings=embeddings, attention_mask=None)
        found = queries_and_keys(layer, 1, hidden, embeddings, asked)
    places = asked[:, None, :, None].expand(-1, found.query.shape[1], -1, found.query.shape[-1])
    assert torch.allclose(found.query.gather(2, places), whole[0].query.gather(2, places), atol=1e-6)
    assert torch.allclose(found.key, whole[0].key, atol=1e-6)
    assert [vars(part).get("forward") for part in layer.modules()] == forwards


def test_attention_of_other_names_projects_everything() -> None:
    attention = nn.Module()
    attention.q_proj, attention.v_proj, attention.dense = (nn.Linear(4, 4) for _ in range(3))
    hidden = torch.randn(1, 5, 4)
    whole = attention.q_proj(hidden)
    with keys_only(attention, torch.tensor([[1]])):
        assert torch.equal(attention.q_proj(hidden), whole)
        assert attention.v_proj(hidden).shape == whole.shape


def test_a_forward_that_was_put_on_a_module_comes_back() -> None:
    module = nn.Linear(1, 1)
    module.forward = torch.sin
    with internals.forwarding(module, torch.cos):
        assert float(module(torch.zeros(1))) == 1.0
    assert module.forward is torch.sin


class _KeepsKernel(nn.Module):
    """Attention that chose its kernel when it was made."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def test_a_decoder_has_a_rotary_module_of_states_and_positions(qwen3: Any, one_axis: Any) -> None:
    for model in (qwen3, one_axis):
        names = list(inspect.signature(internals.rotary_of(model.get_decoder()).forward).parameters)
        assert names[1] == "position_ids"
    with pytest.raises(ModelError, match=f"{RELEASE}.*Linear has no `rotary_emb`"):
        internals.rotary_of(nn.Linear(1, 1))


def test_deepstack_goes_through_one_method(qwen3: Any, one_axis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = qwen3.get_decoder()
    step = internals.deepstack_step(decoder)
    assert step is not None
    assert len(inspect.signature(step).parameters) == 3
    assert internals.deepstack_step(one_axis.get_decoder()) is None
    monkeypatch.delattr(type(decoder), internals.DEEPSTACK)
    with pytest.raises(ModelError, match=f"{RELEASE}.*_deepstack_process"):
        internals.deepstack_step(decoder)


def test_caches_have_layers_with_keys_and_can_be_reordered() -> None:
    cache = transformers.DynamicCache()
    cache.update(torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4), 0)
    assert internals.cached_keys(cache, 0).shape == (2, 1, 3, 4)
    internals.beam_reorder(cache)(torch.tensor([1, 0]))
    with pytest.raises(ModelError, match=f"{RELEASE}.*`keys`"):
        internals.cached_keys(SimpleNamespace(layers=[object()]), 0)
    with pytest.raises(ModelError, match=f"{RELEASE}.*`reorder_cache`"):
        internals.beam_reorder(object())


def test_the_cache_of_a_decoder_tells_whether_all_its_layers_grow(qwen3: Any) -> None:
    config = copy.deepcopy(qwen3.config)
    assert internals.growing_cache(config)
    with torch.no_grad():
        cache = qwen3.get_decoder()(input_ids=torch.tensor([[3, 4]])).past_key_values
    assert {type(layer) for layer in cache.layers} == {transformers.cache_utils.DynamicLayer}
    text = config.get_text_config()
    text.sliding_window, text.layer_types = 4, ["full_attention"] * 3 + ["sliding_attention"]
    assert not internals.growing_cache(config)


def test_generate_begins_with_one_method_whoever_calls_it(qwen3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr(qwen3, internals.GENERATE_START, stop)
    monkeypatch.setattr(qwen3, "forward", lambda *args, **kwargs: pytest.fail("the model ran"))
    for generate in (qwen3.generate, lambda ids: transformers.GenerationMixin.generate(qwen3, ids)):
        with pytest.raises(InterruptedError):
            generate(torch.tensor([[1, 2]]))


def test_mrope_is_numbered_by_get_rope_index(qwen3: Any, one_axis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    number = internals.rope_index(qwen3)
    assert number is not None
    assert {"input_ids", "attention_mask", "video_grid_thw"} <= set(inspect.signature(number).parameters)
    assert internals.rope_index(one_axis) is None
    assert internals.rope_index(qwen3.get_decoder()) is None
    monkeypatch.delattr(type(qwen3.base_model), "get_rope_index")
    with pytest.raises(ModelError, match=f"{RELEASE}.*M-RoPE.*get_rope_index"):
        internals.rope_index(qwen3)


def test_the_vision_side_is_one_method_a_modality(one_axis: Any) -> None:
    kit = test_llava_onevision.TestLlavaOnevision()
    encode = internals.vision_encoder(one_axis, "video")
    assert encode is not None
    assert internals.needed(encode(**kit.make_video(0), return_dict=True), "pooler_output") is not None
    assert internals.vision_encoder(one_axis.get_decoder(), "video") is None
