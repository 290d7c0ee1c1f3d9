"""The policies reproduce recorded outputs of the official VidCom², DyCoke, FastV, PyramidDrop and SparseVLM code."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "data" / "vectors"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_vectors", ROOT / "scripts" / "check_vectors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


script = load_script()
CHECKS = list(script.checks(FOLDER))
in_llm = sys.modules["in_llm_vectors"]


@pytest.mark.parametrize("check", CHECKS, ids=[check.name for check in CHECKS])
def test_recorded_choices_are_reproduced(check) -> None:
    assert check.faults() == []


def test_the_recorded_set_covers_every_method_and_a_failure() -> None:
    names = [check.name for check in CHECKS]
    parts = ["vidcom2 m196", "vidcom2 edge_static", "adapter_qwen", "dycoke ttm_f4", "ttmfix_", "kv_", "e2e_"]
    parts += ["fastv d_", "fastv e2e", "pyramiddrop odd", "sparsevlm cluster", "sparsevlm score", "sparsevlm main_v1"]
    for part in parts:
        assert any(part in name for name in names), part


def changed(source: Path, target: Path, name: str, key: str) -> Path:
    """A copy of the recorded set with one array changed."""
    shutil.copytree(source, target)
    with np.load(target / f"{name}.npz") as file:
        arrays = dict(file)
    arrays[key] = arrays[key] + np.array(1, dtype=arrays[key].dtype)
    np.savez_compressed(target / f"{name}.npz", **arrays)
    return target


@pytest.mark.parametrize(
    ("name", "key", "says"),
    [
        ("vidcom2", "m49_T4_mild_R25/kept", "kept"),
        ("vidcom2", "m49_T4_mild/v", "v is off"),
        ("dycoke", "ttm_f8_K0.7/kept_idx", "kept"),
        ("dycoke", "kv_small_P0.7/step2/kv_sorted", "step 2"),
        ("in-llm", "fastv_hf/a_even_r50/kept_vis", "kept"),
        ("in-llm", "fastv_hf/e2e/dec1_hidden", "decode step 1 is off"),
        ("in-llm", "pdrop/odd/kept_abs", "kept"),
        ("in-llm", "svlm_cluster/main/c1/center_idx", "centres"),
        ("in-llm", "svlm_score/main_v1/l6/rel", "score is off"),
        ("in-llm", "svlm_e2e/main_v1_small/merged1", "melted 1 is off"),
    ],
)
def test_a_changed_vector_is_noticed(tmp_path: Path, name: str, key: str, says: str) -> None:
    folder = changed(FOLDER, tmp_path / "vectors", name, key)
    parts = set(key.split("/"))
    concerned = [check for check in script.checks(folder) if parts & set(check.name.split()) or name == "vidcom2"]
    found = [fault for check in concerned for fault in check.faults()]
    assert any(says in fault for fault in found)


def test_the_script_says_what_differs(tmp_path: Path, capsys) -> None:
    folder = changed(FOLDER, tmp_path / "vectors", "vidcom2", "m49_T4_mild_R25/kept")
    assert script.main([str(folder)]) == 1
    out = capsys.readouterr().out
    assert "DIFFERS  vidcom2 m49_T4_mild_R25: kept" in out
    assert f"{len(CHECKS) - 1} of {len(CHECKS)} cases agree" in out


# ------------------------------------------------------- runs that are kept elsewhere, worked out layer by layer


@torch.no_grad()
def layer_by_layer(model: Any, embeds: Tensor, cut: Callable[..., Tensor | None], compact: bool) -> Tensor:
    """The last prompt token's hidden state when `cut` says, before each layer, which columns go on."""
    hidden, positions = embeds, torch.arange(embeds.shape[1])
    before = None
    for number, layer in enumerate(model.layers):
        keep = cut(number, hidden, positions, before)
        if keep is not None:
            hidden, positions = hidden[:, keep], torch.arange(len(keep)) if compact else positions[keep]
        before = hidden, positions
        hidden = layer(hidden, position_embeddings=model.rotary_emb(hidden, positions[None]), attention_mask=None)
    return model.norm(hidden)[0, -1]


def eager(model: Any, number: int, hidden: Tensor, positions: Tensor) -> Tensor:
    """Causal attention of a layer, all heads and rows: [heads columns columns]."""
    layer, size = model.layers[number], model.layers[number].self_attn.head_dim
    normed = layer.input_layernorm(hidden)
    query, key = (
        project(normed).view(1, hidden.shape[1], -1, size).transpose(1, 2)
        for project in (layer.self_attn.q_proj, layer.self_attn.k_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, *model.rotary_emb(hidden, positions[None]))
    logits = (query @ key.transpose(2, 3))[0] / size**0.5
    return logits.masked_fill(~torch.ones(logits.shape[1:], dtype=torch.bool).tril(), -torch.inf).softmax(dim=-1)


def pyramiddrop_arrays() -> dict[str, np.ndarray]:
    """A run whose weights are drawn by the names of the causal model, as the official class has them."""
    layers, seed, (before, video, text), after = in_llm.PDROP_RUN
    model = in_llm.drawn(LlamaForCausalLM(in_llm.llama(layers, 32, 4, 4, 48)), seed, 0.25).model
    counts = {layer + 1: video // 2 ** (turn + 1) for turn, layer in enumerate(after)}
    alive = [video]

    def cut(number: int, hidden: Tensor, positions: Tensor, _: Any) -> Tensor | None:
        if number not in counts:
            return None
        row = eager(model, number, hidden, positions).mean(dim=0)[-1, before : before + alive[-1]]
        kept = row.topk(counts[number]).indices.sort().values + before
        rest = torch.arange(hidden.shape[1])
        alive.append(counts[number])
        return torch.cat([rest[:before], kept, rest[before + alive[-2] :]])

    embeds = in_llm.embeddings(seed + 1000, before + video + text, 32)
    return {"pdrop/e2e/last_hidden": layer_by_layer(model, embeds, cut, compact=True).numpy()}


def sparsevlm_plus_arrays(tag: str) -> dict[str, np.ndarray]:
    """A run of SparseVLM+ by its formula: 2/√d Σ cos(Δ θ) below the attention, then 14 of 16 heads."""
    run = in_llm.SPARSEVLM_RUNS[tag]
    before, video, text = run.span
    size, hidden_size = run.head_dim, 16 * run.head_dim
    config = in_llm.llama(run.layers, hidden_size, 16, 16, 2 * hidden_size)
    model = in_llm.drawn(LlamaModel(config), run.seed, run.std)
    embeds = in_llm.embeddings(run.seed + 1000, before + video + text, hidden_size, run.embedding_std)
    mean = (embeds[0, before : before + video] @ embeds[0, before + video :].T).softmax(dim=-1).mean(dim=0)
    raters = (mean > mean.mean()).nonzero().squeeze(1)
    key, turn, alive = f"svlm_e2e/{tag}", [0], [video]
    arrays = {f"{key}/raters": raters.numpy()}

    def cut(number: int, hidden: Tensor, positions: Tensor, ran: Any) -> Tensor | None:
        if number not in (3, 7, 16)[: len(run.kept)]:
            return None
        apart = (positions[:, None] - positions).double()
        weight = sum(2 / size**0.5 * torch.cos(apart / 10000.0 ** (2 * pair / size)) for pair in range(size // 2))
        attention = eager(model, number - 1, *ran)[:, before + alive[-1] :][:, raters][..., before : before + alive[-1]]
        attention = attention / weight[before + alive[-1] :][raters][:, before : before + alive[-1]].float()
        heads = attention.sum(dim=(1, 2)).topk(14).indices
        scores = attention[heads].mean(dim=(0, 1))
        kept = scores.topk(run.kept[turn[-1]]).indices.sort().values
        found = {"rel": scores, "kept": kept}
        arrays.update({f"{key}/{name}{turn[-1]}": value.numpy() for name, value in found.items()})
        if tag == "main_v2_576":
            arrays[f"svlm_v2/e2e_heads{turn[-1]}"] = heads.numpy()
        rest = torch.arange(hidden.shape[1])
        turn.append(turn[-1] + 1)
        alive.append(len(kept))
        return torch.cat([rest[:before], kept + before, rest[before + alive[-2] :]])

    arrays[f"{key}/last_hidden"] = layer_by_layer(model, embeds, cut, compact=False).numpy()
    return arrays


def heads_arrays() -> dict[str, np.ndarray]:
    """The choice of heads by sums, and what attention is divided by at each distance."""
    rows = in_llm.attention_map(431, 28, 10, 80, 30)[:, [90, 95, 101, 119]].double().sum(dim=(1, 2))
    distance = torch.arange(612, -1, -1).double()
    weight = sum(2 / 8**0.5 * torch.cos(distance / 10000.0 ** (2 * pair / 8)) for pair in range(4))
    return {
        "svlm_v2/heads": rows.topk(14).indices.numpy(),
        "svlm_v2/head_sums": rows.numpy(),
        "svlm_v2/rope_weight_last_row_layer2": weight.float().numpy(),
    }


@pytest.mark.parametrize(
    ("names", "arrays"),
    [
        (["pyramiddrop e2e"], pyramiddrop_arrays),
        (["sparsevlm main_v2_576"], partial(sparsevlm_plus_arrays, "main_v2_576")),
        (["sparsevlm+ heads", "sparsevlm+ rotary weight"], heads_arrays),
    ],
    ids=["pyramiddrop", "plus", "heads"],
)
def test_a_run_that_is_kept_elsewhere_agrees(
    names: list[str], arrays: Callable[[], dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recordings hold more runs than the project ships; a check of theirs must not differ for a reason of its own."""
    # no decode steps were worked out
    monkeypatch.setattr(in_llm, "decoded", last_of_prefill)
    recorded = json.loads((FOLDER / "in-llm.json").read_text())
    recorded["fastv_hf"] = {"cases": [], "e2e": None}
    recorded["pdrop"]["rank_drop"], recorded["svlm_main_v1"] = [], {"cluster": [], "score": []}
    found = {name: faults() for name, faults in in_llm.in_llm_checks(recorded, arrays()) if name != "fastv e2e"}
    assert found == {name: [] for name in names}


def last_of_prefill(model: Any, output: Any, width: int, key: str, names: Any, ids: Any, arrays: Any) -> list:
    return in_llm.far("last", arrays[f"{key}/last_hidden"], output.last_hidden_state[0, -1], in_llm.HIDDEN)


def test_another_input_than_the_recorded_one_is_noticed() -> None:
    x = script.dycoke_input({"frames": 2, "tokens": 3, "dim": 4, "seed": 1})
    assert "another hash" in script._wrong_input(x, "0" * 64)[0]
