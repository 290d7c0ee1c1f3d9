"""V2Drop, DART, FrameFusion and STTM on the bundled models, against masks in the unmodified model."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from adapters.kernels import KERNELS, kernel
from policies.framefusion_by_hand import by_hand as merged_by_hand
from policies.sttm_by_hand import by_hand as regions_by_hand
from torch import Tensor
from transformers.integrations import sdpa_attention as sdpa
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vidsieve import load_policy
from vidsieve.bundled.bundled_models import get
from vidsieve.bundled.bundled_task import BundledTask
from vidsieve.framework.planning.attainable import LayerCounts, prune_points
from vidsieve.framework.policy.file import read_policy
from vidsieve.framework.policy.policy import Policy
from vidsieve.media import Clip, load_processor
from vidsieve.testing.adapter_decoder_kit import masked, video_columns
from vidsieve.testing.adapter_kit import STEPS, layouts_of, logits, run

Rule = Callable[[Any, int, list[int], int], list[int]]


def points_of(policy: Policy, visual: int, depth: int) -> list[tuple[int, int]]:
    """(layer after which it acts, tokens it leaves) of every prune point, from the counts alone."""
    counts, found = LayerCounts(policy, baseline=visual, offered=visual, layers=depth), []
    for point in prune_points(policy, depth):
        _, count = counts.ask(point)
        assert count is not None
        counts.leave(count)
        found.append((point.layer, count))
    return found


def expected(model: Any, inputs: dict[str, Any], policy: Policy, sequences: Tensor, rule: Rule) -> Tensor:
    """Logits of the same text when the unmodified model masks the columns that `rule` does not keep."""
    (columns,) = video_columns(model, inputs)
    depth = model.config.get_text_config().num_hidden_layers
    gone = torch.zeros(depth, inputs["input_ids"].shape[1], dtype=torch.bool)
    for after, count in points_of(policy, len(columns), depth):
        _, output = masked(model, inputs, inputs["input_ids"], gone, eager=True)
        alive = [int(column) for column in columns if not gone[after + 1, column]]
        kept = rule(output, after, alive, count)
        assert len(kept) == count < len(alive)
        gone[after + 1 :, [column for column in alive if column not in kept]] = True
    return masked(model, inputs, sequences[:, :-1], gone)[0][-STEPS:]


def most_changed(output: Any, after: int, alive: list[int], count: int) -> list[int]:
    """The columns whose hidden states moved farthest through one layer."""
    before, behind = output.hidden_states[after][0], output.hidden_states[after + 1][0]
    change = {column: float(sum((behind[column] - before[column]) ** 2)) for column in alive}
    return sorted(alive, key=lambda column: (-change[column], column))[:count]


@pytest.mark.parametrize("attention", KERNELS)
def test_v2drop_equals_masks_in_the_unmodified_model(asked: tuple[Any, dict[str, Any]], attention: str) -> None:
    (model, inputs), policy = asked, load_policy("v2drop", retention_ratio=0.5)
    with kernel(model, attention):
        output, report = run(model, policy, inputs)
    by_hand = expected(model, inputs, policy, output.sequences, most_changed)
    assert torch.allclose(logits(output)[0], by_hand, atol=1e-5)
    assert 0.5 - 2 / report.baseline_tokens < report.attained_ratio <= 0.5


@contextmanager
def keys_of(model: Any) -> Iterator[dict[int, Tensor]]:
    """While open, the rotated keys of each layer of the last pass."""
    found: dict[int, Tensor] = {}
    original = sdpa.sdpa_attention_forward

    def look(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Any:
        found[getattr(module, "layer_idx", -1)] = key  # layers of a vision tower may have no number
        return original(module, query, key, value, *args, **options)

    ALL_ATTENTION_FUNCTIONS["seen"] = look
    given = model.config._attn_implementation
    model.set_attn_implementation("seen")
    try:
        yield found
    finally:
        model.set_attn_implementation(given)
        del ALL_ATTENTION_FUNCTIONS["seen"]


@pytest.mark.parametrize("attention", KERNELS)
def test_dart_equals_masks_in_the_unmodified_model(asked: tuple[Any, dict[str, Any]], attention: str) -> None:
    (model, inputs), policy = asked, load_policy("dart", retention_ratio=0.5)
    lm, ids = model.get_decoder(), inputs["input_ids"]
    (columns,) = video_columns(model, inputs)
    words = [i for i in range(int(columns[-1]) + 1, ids.shape[1]) if ids[0, i] != model.config.video_token_id]
    with keys_of(model) as keys:
        masked(model, inputs, ids, torch.zeros(len(lm.layers), ids.shape[1], dtype=torch.bool))

    def least_alike(output: Any, after: int, alive: list[int], count: int) -> list[int]:
        norm = keys[after][0].abs().sum(dim=(0, 2))
        images = sorted(sorted(alive, key=lambda i: -float(norm[i]))[:4])
        texts = sorted(sorted(words, key=lambda i: -float(norm[i]))[:4])
        states = lm.norm(output.hidden_states[after + 1][0])
        taken = list(images)
        for number, pivot in enumerate(images + texts):
            each, more = divmod(count - len(images), len(images + texts))
            free = [i for i in alive if i not in taken]
            like = {i: float(torch.cosine_similarity(states[pivot], states[i], dim=0).detach()) for i in free}
            taken += sorted(free, key=lambda i: like[i])[: each + (number < more)]
        return taken

    with kernel(model, attention):
        output, report = run(model, policy, inputs)
    by_hand = expected(model, inputs, policy, output.sequences, least_alike)
    assert torch.allclose(logits(output)[0], by_hand, atol=1e-5)
    assert 0.5 - 2 / report.baseline_tokens < report.attained_ratio <= 0.5


@pytest.mark.parametrize("attention", KERNELS)
def test_framefusion_equals_masks_in_the_unmodified_model(asked: tuple[Any, dict[str, Any]], attention: str) -> None:
    model, inputs = asked
    after = {"framefusion.merge-inside.after": [0, 1], "framefusion.merge-inside.similarity": 0.985}
    options = after | {"framefusion.merge.similarity": 0.999, "fastv.prune.after": 2}
    policy, ratio = load_policy("framefusion", retention_ratio=0.5, settings=options), 0.5
    ids, depth = inputs["input_ids"], model.config.get_text_config().num_hidden_layers
    (columns,) = video_columns(model, inputs)
    (layout,) = [layout for layout in layouts_of(model, inputs) if layout.visual]
    place = {int(column): number % layout.tokens for number, column in enumerate(columns)}
    gone, entered = torch.zeros(depth, ids.shape[1], dtype=torch.bool), []
    melted: dict[int, tuple[Tensor, Tensor]] = {}
    for layer in range(3):  # the entry of this layer
        _, output = masked(model, inputs, ids, gone, eager=True, melted=melted)
        alive = [int(column) for column in columns if not gone[layer, column]]
        afford = (ratio * depth * len(columns) - sum(entered)) / (depth - layer)
        states = output.hidden_states[layer][0]
        most = max(0, int(len(alive) - afford))
        into = merged_by_hand(states[alive], [place[column] for column in alive], 0.985 if layer else 0.999, most)
        groups = {i: [alive[j] for j, front in enumerate(into) if front == i] for i in sorted(set(into))}
        targets = [alive[i] for i in groups]
        means = torch.stack([states[members].mean(dim=0) for members in groups.values()])
        gone[layer:, [column for column in alive if column not in targets]] = True
        melted[layer] = (torch.tensor(targets), means)
        entered.append(len(targets))
    _, output = masked(model, inputs, ids, gone, eager=True, melted=melted)
    alive, row = [int(c) for c in columns if not gone[2, c]], output.attentions[2][0, :, -1].mean(dim=0)
    count = min(len(alive), int((ratio * depth * len(columns) - sum(entered)) / (depth - 3)))
    kept = sorted(alive, key=lambda column: (-float(row[column]), column))[:count]
    gone[3:, [column for column in alive if column not in kept]] = True

    with kernel(model, attention):
        output, report = run(model, policy, inputs)
    by_hand = masked(model, inputs, output.sequences[:, :-1], gone, melted=melted)[0][-STEPS:]
    assert torch.allclose(logits(output)[0], by_hand, atol=1e-5)
    assert len(columns) > entered[0] > entered[1] >= entered[2]
    assert report.layer_tokens == ((*entered, *[count] * (depth - 3)),)
    assert 0.5 - 2 / report.baseline_tokens < report.attained_ratio <= 0.5


@pytest.mark.parametrize("attention", KERNELS)
def test_sttm_equals_masks_in_the_unmodified_model(asked: tuple[Any, dict[str, Any]], attention: str) -> None:
    (model, inputs), setting = asked, (0.9, 0.8, 0)
    stage = "{use: sttm.merge, similarity: 0.9, temporal_similarity: 0.8, root_level: 0}"
    policy = read_policy(f"{{format: 1, name: free, exact: false, stages: [{stage}]}}", "free.yaml")
    ids, depth = inputs["input_ids"], model.config.get_text_config().num_hidden_layers
    (columns,) = video_columns(model, inputs)
    (layout,) = [layout for layout in layouts_of(model, inputs) if layout.visual]
    gone = torch.zeros(depth, ids.shape[1], dtype=torch.bool)
    _, output = masked(model, inputs, ids, gone, eager=True)
    states = output.hidden_states[1][0][columns]
    parts = regions_by_hand(states, list(range(len(columns))), layout.grid, setting)
    targets = sorted(parts)
    means = [sum(share * states[i] for i, share in parts[t].items()) / sum(parts[t].values()) for t in targets]
    gone[1:, columns] = True
    gone[1:, columns[targets]] = False

    with kernel(model, attention):
        output, report = run(model, policy, inputs)
    melted = {1: (columns[targets], torch.stack(means))}
    by_hand = masked(model, inputs, output.sequences[:, :-1], gone, melted=melted)[0][-STEPS:]
    assert torch.allclose(logits(output)[0], by_hand, atol=1e-5)
    assert report.layer_tokens == ((len(columns), *[len(targets)] * (depth - 1)),)
    assert 4 < len(targets) < len(columns) / 2


@pytest.fixture(scope="module")
def two_rows(asked: tuple[Any, dict[str, Any]]) -> tuple[Any, list[dict[str, Any]]]:
    """The model with a padded batch of two prompts about two clips, and each prompt alone."""
    model, _ = asked
    name = "qwen2-vl-tiny" if "qwen2" in model.config.model_type else "llava-onevision-tiny"
    entry = get(name)
    processor = load_processor(entry.folder, model.config, prefer_hf=False)
    examples = list(BundledTask("static", frame_count=entry.frame_count).examples("heldout", 2))
    clips = [[Clip.from_frames(one.frames, fps=one.fps)] for one in examples]
    questions = [examples[0].question, "Mark closely. " + examples[1].question]
    alone = [processor.build_inputs([q], [clip]) for q, clip in zip(questions, clips, strict=True)]
    return model, [processor.build_inputs(questions, clips), *alone]


@pytest.mark.parametrize("name", ["v2drop", "dart", "framefusion", "sttm"])
def test_rows_of_a_padded_batch_are_pruned_as_alone(two_rows: tuple[Any, list[dict[str, Any]]], name: str) -> None:
    model, (batch, *alone) = two_rows
    assert not batch["attention_mask"].all()
    policy = load_policy(name, retention_ratio=0.4)
    together, report = run(model, policy, batch)
    for row, inputs in enumerate(alone):
        output, single = run(model, policy, inputs)
        assert torch.allclose(logits(together)[row], logits(output)[0], atol=2e-5)
        assert report.layer_tokens[row] == single.layer_tokens[0]


@pytest.mark.parametrize("name", ["v2drop", "dart", "framefusion", "sttm"])
def test_half_precision_changes_no_count(asked: tuple[Any, dict[str, Any]], name: str) -> None:
    model, inputs = asked
    half = copy.deepcopy(model).bfloat16()
    short = {key: value.bfloat16() if value.is_floating_point() else value for key, value in inputs.items()}
    policy = load_policy(name, retention_ratio=0.4)
    _, report = run(half, policy, short)
    assert report.attained_ratio <= 0.4
    assert report.attained_ratio > (0.25 if name == "sttm" else 0.4 - 2 / report.baseline_tokens)
