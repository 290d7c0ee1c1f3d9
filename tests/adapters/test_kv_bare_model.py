"""KV stages on a bare text LLM with a visual span, against a run of the official DyCoke code.

tests/data/dycoke_decode.npz holds what github.com/KD-TAO/DyCoke at dd74634 (Apache-2.0) computed on a tiny random
Qwen2: logits of teacher-forced decode steps and the KV columns chosen in each. The weights are drawn again here.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vidsieve.adapters.decoder.decode_kv import DecodeKV, attach_kv
from vidsieve.framework import registry
from vidsieve.testing.adapter_decoder_kit import TopKV

DATA = np.load(Path(__file__).parent.parent / "data" / "dycoke_decode.npz")
META: dict[str, Any] = json.loads(str(DATA["meta"]))
SPAN = (META["start"], META["n_vis"])


@pytest.fixture(scope="module")
def model() -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model, draw, seen = Qwen2ForCausalLM(config).eval(), np.random.default_rng(META["wseed"]), hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        drawn = draw.standard_normal(tuple(weight.shape))
        if "norm" in name or name.endswith("bias"):
            drawn = ("norm" in name) + 0.1 * drawn
        elif "embed_tokens" not in name:
            drawn /= np.sqrt(weight.shape[1])
            drawn *= META["qk_gain"] if "q_proj" in name or "k_proj" in name else 1
        seen.update(drawn.astype(np.float32).tobytes())
        weight.copy_(torch.from_numpy(drawn))
    assert seen.hexdigest() == META["weights_sha256"], "numpy's generator no longer draws the recorded weights"
    return model


def released() -> Any:
    """DyCoke's decode stage as the official code runs it."""
    stage = registry.default().stages["dycoke.kv"]
    return stage(layer=META["L"], drop_ratio=META["P"], refresh="full", keep_last=True)


@torch.no_grad()
def decoded(model: Qwen2ForCausalLM, watch: DecodeKV | None = None) -> tuple[torch.Tensor, list[list[int]]]:
    """Logits of the prompt's end and of each forced step, and the columns that later layers read in it."""
    embeds = torch.from_numpy(DATA["inputs_embeds"])[None]
    output, rows, read = model(inputs_embeds=embeds, use_cache=True), [], []
    rows.append(output.logits[:, -1])
    for token in DATA["decode_tokens"]:
        ids = torch.tensor([[int(token)]])
        output = model(input_ids=ids, past_key_values=output.past_key_values, use_cache=True)
        rows.append(output.logits[:, -1])
        if watch is not None:
            (step,) = watch.steps
            later = list(range(step.keep.shape[1], step.total))
            read.append(step.keep[0].nonzero().squeeze(1).tolist() + later)
    return torch.cat(rows), read


def test_decode_under_dycoke_equals_the_official_code(model: Qwen2ForCausalLM) -> None:
    with attach_kv(model, [released()], SPAN) as decode:
        logits, read = decoded(model, decode)
    assert np.abs(logits.numpy() - DATA["logits_dycoke"]).max() < 1e-4
    pruned = 0
    for step, columns in enumerate(read):
        chosen = DATA.get(f"step{step}/kv_sorted")
        pruned += chosen is not None
        everything = list(range(len(DATA["inputs_embeds"]) + step + 1))
        assert columns == (everything if chosen is None else chosen.tolist())
    assert 0 < pruned < len(read)


def test_without_a_stage_the_model_is_the_official_uncompressed_one(model: Qwen2ForCausalLM) -> None:
    logits, _ = decoded(model)
    assert np.abs(logits.numpy() - DATA["logits_full"]).max() < 1e-4
    assert np.abs(DATA["logits_full"] - DATA["logits_dycoke"]).max() > 0.1


def test_a_forward_without_a_past_is_a_new_request(model: Qwen2ForCausalLM) -> None:
    with attach_kv(model, [released()], SPAN) as decode:
        first, _ = decoded(model, decode)
        again, _ = decoded(model, decode)
    assert torch.equal(first, again)


@torch.no_grad()
def test_kernels_see_the_real_implementation_while_they_run(
    model: Qwen2ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def probe(module: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(module.config._attn_implementation)
        return sdpa(module, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", probe)
    with attach_kv(model, [TopKV()], SPAN):
        decoded(model)
    assert set(seen) == {"sdpa"}


@torch.no_grad()
def test_padding_is_never_attended_to(model: Qwen2ForCausalLM) -> None:
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 97, (1, 20), generator=draw)
    padded, mask = torch.cat([ids[:, :5] * 0, ids], dim=1), torch.ones(1, 26, dtype=torch.long)
    mask[:, :5] = 0
    with attach_kv(model, [TopKV()], (4, 10)):
        plain = model(input_ids=ids, use_cache=True)
        plain = model(input_ids=ids[:, :1], past_key_values=plain.past_key_values).logits
    with attach_kv(model, [TopKV()], (9, 10)):
        wide = model(input_ids=padded, attention_mask=mask[:, :25], position_ids=position(mask[:, :25]))
        options = {"attention_mask": mask, "position_ids": position(mask)[:, -1:]}
        wide = model(input_ids=ids[:, :1], past_key_values=wide.past_key_values, **options).logits
    assert torch.allclose(plain, wide, atol=1e-5)


def position(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)
