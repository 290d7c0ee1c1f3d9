"""Recorded outputs of the official FastV, PyramidDrop and SparseVLM code: inputs drawn again, and what must agree.

Kept sets must match exactly; hidden states within 1.5e-5, melted tokens within 5e-5, scores within 1e-6.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from vidsieve.adapters.decoder.bare_model import attach_layers
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep, Merge
from vidsieve.framework.policy.policy import BoundStage, Policy
from vidsieve.framework.records import LayerTokens
from vidsieve.framework.stage import Stage
from vidsieve.policies.fastv_prune import FastV
from vidsieve.policies.pyramiddrop_prune import PyramidDrop
from vidsieve.policies.shared.sparsevlm import density_peaks, raters, relevance
from vidsieve.policies.sparsevlm_prune import SparseVLM
from vidsieve.testing import rank_layer

Arrays = Mapping[str, np.ndarray]
HIDDEN, MELTED, SCORE = 1.5e-5, 5e-5, 1e-6
# whole prefills of SparseVLM: layers, weight seed, span before, video, text, and tokens kept at each point
SPARSEVLM_RUNS = {
    "main_v1_576": (17, 421, (7, 576, 30), (300, 200, 110)),
    "main_v1_small": (17, 422, (5, 128, 14), (60, 30, 12)),
}
PDROP_RUN = (8, 311, (6, 64, 10), (1, 3, 5))


def in_llm_checks(recorded: Mapping[str, Any], arrays: Arrays) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """Name and comparison of every case that is recorded."""
    for case in recorded["fastv_hf"]["cases"]:
        yield f"fastv {case['name']}", partial(fastv_case, case, arrays)
    yield "fastv e2e", partial(fastv_run, recorded["fastv_hf"]["e2e"], arrays)
    for case in recorded["pdrop"]["rank_drop"]:
        yield f"pyramiddrop {case['name']}", partial(pyramiddrop_case, case, arrays)
    if "pdrop/e2e/last_hidden" in arrays:
        yield "pyramiddrop e2e", partial(pyramiddrop_run, arrays)
    sparsevlm = recorded["svlm_main_v1"]
    for case in sparsevlm["cluster"]:
        yield f"sparsevlm cluster {case['name']}", partial(sparsevlm_cluster, case, arrays)
    for case in sparsevlm["score"]:
        yield f"sparsevlm score {case['name']}", partial(sparsevlm_score, case, arrays)
    for tag in SPARSEVLM_RUNS:
        if f"svlm_e2e/{tag}/last_hidden" in arrays:
            yield f"sparsevlm {tag}", partial(sparsevlm_run, tag, arrays)


# ---------------------------------------------------------------------------------------------------- the cases


def fastv_case(case: Mapping[str, Any], arrays: Arrays) -> list[str]:
    """Scores and kept tokens from one recorded attention map."""
    rows = attention_map(case["seed"], case["heads"], case["sys"], case["vis"], case["txt"])
    stage, key = FastV(keep_ratio=1 - case["r"], after=case["K"] - 1), f"fastv_hf/{case['name']}"
    kept = rank_layer(stage, rows, count=stage.leaves(case["vis"], 32)[0])
    faults = far("score", arrays[f"{key}/score"], rows[:, -1].mean(dim=0), SCORE)
    return faults + differs("kept", arrays[f"{key}/kept_vis"], kept)


@torch.no_grad()
def fastv_run(case: Mapping[str, Any], arrays: Arrays) -> list[str]:
    """A prefill and two decode steps of a small Llama."""
    model = drawn(LlamaModel(llama(5, 32, 4, 2, 48)), case["weight_seed"], 0.25)
    policy = policy_of(FastV(keep_ratio=1 - case["r"], after=case["K"] - 1))
    width = case["sys"] + case["vis"] + case["txt"]
    with attach_layers(model, policy, (case["sys"], case["vis"])) as prune:
        output = model(inputs_embeds=embeddings(case["emb_seed"], width, 32), use_cache=True)
        assert prune.prefill is not None
        faults = differs("kept", arrays["fastv_hf/e2e/kept_vis"], prune.prefill.rows[0].videos[0].tokens)
        lengths = [output.past_key_values.get_seq_length(layer) for layer in range(5)]
        faults += [] if lengths == case["kv"] else [f"caches of {lengths} tokens, official {case['kv']}"]
        return faults + decoded(model, output, width, "fastv_hf/e2e", ("dec0_hidden", "dec1_hidden"), (3, 4), arrays)


@torch.no_grad()
def pyramiddrop_case(case: Mapping[str, Any], arrays: Arrays) -> list[str]:
    """Kept tokens ranked by a layer's norm, queries and keys; the layer before is taken out."""
    model = drawn(LlamaForCausalLM(llama(3, 32, 4, 4, 48)), case["weight_seed"], 0.25)
    layer, ratio = case["weights_layer"], case["k"] / case["vis_now"]
    model.model.layers[layer - 1].forward = lambda hidden, **_: hidden
    seen: list[Tensor] = []

    class Watching(PyramidDrop):
        @hookimpl
        def prune_layer(self, tokens: LayerTokens) -> Any:
            plan = PyramidDrop.prune_layer(self, tokens)
            seen.append(plan.values)
            return plan

    official = case["ratios"][case["stage"] + 1] if case["vis_now"] == case["vis_orig"] else ratio
    policy = policy_of(Watching(keep_ratio=official, after=(layer - 1,)), compact=True)
    width = case["sys"] + case["vis_now"] + case["txt"]
    with attach_layers(model, policy, (case["sys"], case["vis_now"])) as prune:
        model(inputs_embeds=embeddings(case["feat_seed"], width, 32))
        assert prune.prefill is not None
        faults = far("score", arrays[f"pdrop/{case['name']}/score"], seen[0], SCORE)
        return faults + differs("kept", arrays[f"pdrop/{case['name']}/kept_abs"], prune.prefill.rows[0].places)


@torch.no_grad()
def pyramiddrop_run(arrays: Arrays) -> list[str]:
    """A prefill with three prune points and two decode steps."""
    layers, seed, (before, video, text), after = PDROP_RUN
    model = drawn(LlamaModel(llama(layers, 32, 4, 4, 48)), seed, 0.25)
    width = before + video + text
    policy = policy_of(PyramidDrop(keep_ratio=0.5, after=after), compact=True)
    with attach_layers(model, policy, (before, video)):
        output = model(inputs_embeds=embeddings(seed + 1000, width, 32), use_cache=True)
        return decoded(model, output, width, "pdrop/e2e", ("dec0_hidden", "dec1_hidden"), (3, 4), arrays)


def sparsevlm_cluster(case: Mapping[str, Any], arrays: Arrays) -> list[str]:
    """Centres and means of one set of points. Where all tie any centre is right."""
    draw = np.random.default_rng(case["seed"]).standard_normal((1, case["N"], case["C"]))
    points, key = torch.from_numpy(draw.astype(np.float32))[0], f"svlm_cluster/main/{case['name']}"
    centres, into = density_peaks(points, case["k"])
    means = torch.stack([points[into == cluster].mean(dim=0) for cluster in range(case["k"])])
    faults = far("means", arrays[f"{key}/merged"], means, MELTED)
    return faults + (differs("centres", arrays[f"{key}/center_idx"], centres) if case["gap"] else [])


def sparsevlm_score(case: Mapping[str, Any], arrays: Arrays) -> list[str]:
    """Kept tokens from one recorded attention map and given raters."""
    rows = attention_map(case["seed"], case["heads"], case["sys"], case["vis"], case["txt"])
    words, key = torch.zeros(case["txt"], 1), f"svlm_score/main_v1/{case['name']}"
    words[case["raters"]] = 1.0
    stage = SparseVLM(scale=1.0, shares=(case["k"] / case["vis"],), after=(2,), recycle=False)
    given = {"visual_inputs": torch.ones(case["vis"], 1), "text_inputs": words, "text": words}
    kept = rank_layer(stage, rows[:, -case["txt"] :], **given)
    score = rows[:, -case["txt"] :][:, case["raters"]].mean(dim=(0, 1))
    return far("score", arrays[f"{key}/rel"], score, SCORE) + differs("kept", arrays[f"{key}/kept_vis"], kept)


@torch.no_grad()
def sparsevlm_run(tag: str, arrays: Arrays) -> list[str]:
    """Raters, scores, kept and melted tokens of a whole prefill, and one decode step."""
    layers, seed, (before, video, text), kept = SPARSEVLM_RUNS[tag]
    model = drawn(LlamaModel(llama(layers, 128, 16, 16, 256)), seed, 0.1)
    width, seen = before + video + text, Seen()
    stage = watching_sparsevlm(seen)(
        scale=1.0, shares=tuple(count / video for count in kept), after=(2, 6, 15), melted="behind"
    )
    with attach_layers(model, policy_of(stage, compact=True), (before, video)):
        output = model(inputs_embeds=embeddings(seed + 1000, width, 128, 0.3), use_cache=True)
        key = f"svlm_e2e/{tag}"
        faults = differs("raters", arrays[f"{key}/raters"], seen.raters[0])
        for turn, count in enumerate(kept):
            faults += far(f"score {turn}", arrays[f"{key}/rel{turn}"], seen.scores[turn], SCORE)
            faults += differs(f"kept {turn}", arrays[f"{key}/kept{turn}"], seen.kept[turn][:count])
            faults += far(f"melted {turn}", arrays[f"{key}/merged{turn}"], seen.melted[turn], MELTED)
        return faults + decoded(model, output, width, key, ("dec_hidden",), (5,), arrays)


class Seen:
    """What a stage was asked and answered, one entry a prune point."""

    def __init__(self) -> None:
        self.raters: list[Tensor] = []
        self.scores: list[Tensor] = []
        self.kept: list[Tensor] = []
        self.melted: list[Tensor] = []


def watching_sparsevlm(seen: Seen) -> type[SparseVLM]:
    """The stage, telling what it does."""

    class Watching(SparseVLM):
        @hookimpl
        def prune_layer(self, tokens: LayerTokens) -> Keep | Merge:
            plan = SparseVLM.prune_layer(self, tokens)
            assert isinstance(plan, Merge)
            assert plan.behind is not None
            seen.raters.append(raters(tokens.visual_inputs, tokens.text_inputs))
            seen.scores.append(relevance(tokens)[1])
            seen.kept.append(plan.source)
            seen.melted.append(
                torch.stack([tokens.hidden[plan.source[plan.target == one]].mean(dim=0) for one in plan.behind])
            )
            return plan

    return Watching


# ---------------------------------------------------------------------------------------------------- drawing


def attention_map(seed: int, heads: int, before: int, video: int, text: int) -> Tensor:
    """A causal attention map, cut to the video's columns: [heads rows visual]."""
    width = before + video + text
    logits = np.random.default_rng(seed).standard_normal((1, heads, width, width)) * 2.0
    logits[..., ~np.tril(np.ones((width, width), dtype=bool))] = -np.inf
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights = (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)
    return torch.from_numpy(weights)[0][:, :, before : before + video]


def llama(layers: int, hidden: int, heads: int, kv_heads: int, mlp: int) -> LlamaConfig:
    """The tiny text models of the recorded runs."""
    return LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=mlp,
        vocab_size=32,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
    )


def drawn(model: Any, seed: int, std: float) -> Any:
    """The model with its weights drawn in order of their names."""
    draw = np.random.default_rng(seed)
    for _, weight in sorted(model.named_parameters()):
        values = draw.standard_normal(tuple(weight.shape))
        values = 1 + 0.1 * values if weight.dim() == 1 else std * values
        weight.data.copy_(torch.from_numpy(values.astype(np.float32)))
    return model.eval()


def embeddings(seed: int, width: int, dim: int, std: float = 1.0) -> Tensor:
    """Input embeddings of one prompt."""
    values = std * np.random.default_rng(seed).standard_normal((1, width, dim))
    return torch.from_numpy(values.astype(np.float32))


def policy_of(stage: Stage, *, compact: bool = False) -> Policy:
    """A policy of this stage alone."""
    bound = (BoundStage("recorded", "recorded", stage),)
    return Policy(name="recorded", stages=bound, exact=False, positions="compact" if compact else "original")


# ---------------------------------------------------------------------------------------------------- comparing


def decoded(
    model: Any, output: Any, width: int, key: str, names: Sequence[str], ids: Sequence[int], arrays: Arrays
) -> list[str]:
    """The last prompt token's hidden state, and those of decode steps, against the recorded ones."""
    faults = far("last hidden state", arrays[f"{key}/last_hidden"], output.last_hidden_state[0, -1], HIDDEN)
    for step, (name, token) in enumerate(zip(names, ids, strict=True)):
        output = model(
            input_ids=torch.tensor([[token]]),
            position_ids=torch.tensor([[width + step]]),
            past_key_values=output.past_key_values,
        )
        faults += far(f"decode step {step}", arrays[f"{key}/{name}"], output.last_hidden_state[0, -1], HIDDEN)
    return faults


def far(what: str, official: np.ndarray, ours: Tensor, tolerance: float) -> list[str]:
    """A fault if two float arrays are further apart than allowed."""
    if official.shape != tuple(ours.shape):
        return [f"{what}: official shape {official.shape}, ours {tuple(ours.shape)}"]
    furthest = float(np.abs(official - ours.numpy()).max())
    return [] if furthest <= tolerance else [f"{what} is off by {furthest:.2g}"]


def differs(what: str, official: np.ndarray, ours: Tensor) -> list[str]:
    """A fault if two integer arrays are not the same."""
    return [] if np.array_equal(official, ours.numpy()) else [f"{what}: {len(official)} official, {len(ours)} ours"]
