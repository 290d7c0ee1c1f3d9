"""Recorded outputs of the official FastV, PyramidDrop and SparseVLM code: inputs drawn again, and what must agree.

Kept sets must match exactly; hidden states within 1.5e-5, melted tokens within 5e-5, scores within 1e-6.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import PrivateAttr
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from vidsieve.adapters.attention_taps import ones_rotated
from vidsieve.adapters.decoder.layer_pruning import attach_layers
from vidsieve.framework.composition import BoundStage
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep, Merge
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import LayerTokens
from vidsieve.framework.stage import Stage
from vidsieve.policies.fastv import FastV
from vidsieve.policies.pyramiddrop import PyramidDrop
from vidsieve.policies.sparsevlm import SparseVLM, density_peaks, leading_heads, raters, relevance
from vidsieve.testing import rank_layer

Arrays = Mapping[str, np.ndarray]
HIDDEN, MELTED, SCORE = 1.5e-5, 5e-5, 1e-6


class Run(NamedTuple):
    """A whole prefill of SparseVLM: sizes of the model and the prompt, and tokens kept at each point."""

    layers: int
    seed: int
    span: tuple[int, int, int]
    """Tokens before the video, of it, and behind it."""
    kept: tuple[int, ...]
    plus: bool = False
    head_dim: int = 8
    std: float = 0.1
    embedding_std: float = 0.3
    ends: bool = True
    """Whether the last hidden states can be compared."""


SPARSEVLM_RUNS = {
    "main_v1_576": Run(17, 421, (7, 576, 30), (300, 200, 110)),
    "main_v1_small": Run(17, 422, (5, 128, 14), (60, 30, 12)),
    "main_v2_576": Run(17, 441, (7, 576, 30), (300, 200, 118), plus=True),
    # recorded on three layers; here a fourth follows, as nothing is pruned behind the last one
    "main_v2_hd64": Run(4, 442, (6, 170, 24), (60,), True, 64, 0.04, 0.15, ends=False),
}
HEADS_CASE = (431, 28, (10, 80, 30), (0, 5, 11, 29))
"""Seed, heads, span, and raters of the recorded choice of heads."""
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
    if "svlm_v2/heads" in arrays:
        yield "sparsevlm+ heads", partial(sparsevlm_heads, arrays)
    if "svlm_v2/rope_weight_last_row_layer2" in arrays:
        yield "sparsevlm+ rotary weight", partial(sparsevlm_rotary, arrays)


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
    # drawn in the order of the causal model's names, whose head comes first
    model = drawn(LlamaForCausalLM(llama(layers, 32, 4, 4, 48)), seed, 0.25).model
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
    run, key = SPARSEVLM_RUNS[tag], f"svlm_e2e/{tag}"
    before, video, text = run.span
    width, hidden = before + video + text, 16 * run.head_dim
    model = drawn(LlamaModel(llama(run.layers, hidden, 16, 16, 2 * hidden)), run.seed, run.std)
    after = (2, 6, 15)[: len(run.kept)]
    version = {"recycle": False, "distance": "released", "heads": 14} if run.plus else {"melted": "behind"}
    stage = Watched(scale=1.0, shares=tuple(count / video for count in run.kept), after=after, **version)
    with attach_layers(model, policy_of(stage, compact=not run.plus), (before, video)):
        output = model(inputs_embeds=embeddings(run.seed + 1000, width, hidden, run.embedding_std), use_cache=True)
        faults = differs("raters", arrays[f"{key}/raters"], stage.seen[0].raters)
        for turn, (count, seen) in enumerate(zip(run.kept, stage.seen, strict=True)):
            faults += far(f"score {turn}", arrays[f"{key}/rel{turn}"], seen.scores, seen.tolerance)
            faults += differs(f"kept {turn}", arrays[f"{key}/kept{turn}"], seen.kept[:count])
            if seen.melted is not None:
                faults += far(f"melted {turn}", arrays[f"{key}/merged{turn}"], seen.melted, MELTED)
            if tag == "main_v2_576" and f"svlm_v2/e2e_heads{turn}" in arrays:
                official = np.sort(arrays[f"svlm_v2/e2e_heads{turn}"])
                faults += differs(f"heads {turn}", official, seen.heads.sort().values)
        return faults + (decoded(model, output, width, key, ("dec_hidden",), (5,), arrays) if run.ends else [])


def sparsevlm_heads(arrays: Arrays) -> list[str]:
    """The heads that score, from a recorded attention map."""
    seed, heads, span, words = HEADS_CASE
    rows = attention_map(seed, heads, *span)[:, [sum(span[:2]) + word for word in words]]
    found = leading_heads(rows, 14)
    faults = differs("heads", arrays["svlm_v2/heads"], found)
    sums = arrays.get("svlm_v2/head_sums")
    if sums is None:
        return faults
    ours = rows.sum(dim=(1, 2))
    return faults + far("sums", sums, ours if len(sums) == heads else ours[found], 1e-4)


def sparsevlm_rotary(arrays: Arrays) -> list[str]:
    """What the last row of a prompt of 613 tokens is divided by."""
    model, places = LlamaModel(llama(1, 128, 16, 16, 256)), torch.arange(613)
    rotation = model.rotary_emb(torch.zeros(1), places[None])
    ours = ones_rotated(model, rotation, 0, places[-1:], places, 8)[0]
    return far("rotary weight", arrays["svlm_v2/rope_weight_last_row_layer2"].reshape(-1), ours, 5e-5)


class Seen(NamedTuple):
    """What the stage saw and decided at one prune point."""

    raters: Tensor
    scores: Tensor
    tolerance: float | np.ndarray
    heads: Tensor
    kept: Tensor
    melted: Tensor | None


class Watched(SparseVLM):
    """SparseVLM that notes what it sees and decides, one entry a prune point."""

    _seen: list[Seen] = PrivateAttr(default_factory=list)

    @property
    def seen(self) -> list[Seen]:
        """What was noted."""
        return self._seen

    @hookimpl
    def prune_layer(self, tokens: LayerTokens) -> Keep | Merge:
        plan = SparseVLM.prune_layer(self, tokens)
        asked = raters(tokens.visual_inputs, tokens.text_inputs)
        attention, tolerance = tokens.attention(asked, of="previous"), SCORE
        scores = relevance(tokens, distance=self.distance, heads=self.heads)[1]
        if self.distance is not None:
            weight = tokens.rotary(asked)
            attention = attention / weight
            # near a weight of zero float32 says little
            least = weight.abs().amin(dim=0)
            tolerance = torch.where(least > 0.05, SCORE, SCORE + 4e-6 / least * scores.abs()).numpy()
        heads = leading_heads(attention, self.heads or len(attention))
        if isinstance(plan, Keep):
            kept, melted = plan.mask.nonzero().squeeze(1), None
        else:
            assert plan.behind is not None
            kept = plan.source
            melted = torch.stack([tokens.hidden[kept[plan.target == one]].mean(dim=0) for one in plan.behind])
        self._seen.append(Seen(asked, scores, tolerance, heads, kept, melted))
        return plan


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


def far(what: str, official: np.ndarray, ours: Tensor, tolerance: float | np.ndarray) -> list[str]:
    """A fault if two float arrays are further apart than allowed."""
    if official.shape != tuple(ours.shape):
        return [f"{what}: official shape {official.shape}, ours {tuple(ours.shape)}"]
    apart = np.abs(official - ours.numpy())
    return [] if (apart <= tolerance).all() else [f"{what} is off by {float(apart.max()):.2g}"]


def differs(what: str, official: np.ndarray, ours: Tensor) -> list[str]:
    """A fault if two integer arrays are not the same."""
    return [] if np.array_equal(official, ours.numpy()) else [f"{what}: {len(official)} official, {len(ours)} ours"]
