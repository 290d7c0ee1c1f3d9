"""The published policies that prune inside the decoder, on the bundled models, against full-length masked runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from adapters.sparsevlm_by_hand import by_hand
from transformers import AutoModelForImageTextToText

from vidsieve import load_policy
from vidsieve.bundled.catalog import get
from vidsieve.bundled.task import BundledTask
from vidsieve.framework.errors import PolicyError
from vidsieve.framework.layer import LayerCut, cut_of
from vidsieve.framework.layer_counts import LayerCounts, prune_points
from vidsieve.framework.policy import Policy
from vidsieve.framework.policy_file import read_policy
from vidsieve.framework.records import LayerTokens
from vidsieve.framework.testing.adapter_flash import flash_attention
from vidsieve.framework.testing.adapter_layer_kit import Point, masked, ranked, video_columns
from vidsieve.framework.testing.adapter_runs import STEPS, logits, run
from vidsieve.media import Clip, load_processor
from vidsieve.policies.sparsevlm_prune import SparseVLM

NAMES = ("fastv", "pyramiddrop", "sparsevlm")


@pytest.fixture(scope="module", params=["qwen2-vl-tiny", "llava-onevision-tiny"])
def asked(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any]]:
    """A bundled model, and one question about a clip."""
    entry = get(request.param)
    model = AutoModelForImageTextToText.from_pretrained(entry.folder).eval()
    model.generation_config.eos_token_id = None
    processor = load_processor(entry.folder, model.config, prefer_hf=False)
    (example,) = BundledTask("static", frame_count=entry.frame_count).examples("heldout", 1)
    clip = Clip.from_frames(example.frames, fps=example.fps)
    return model, processor.build_inputs([example.question], [[clip]])


@contextmanager
def kernel(model: Any, name: str) -> Iterator[None]:
    if name == "flash":
        with flash_attention(model):
            yield
        return
    given = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(given)


def points_of(policy: Policy, visual: int, depth: int) -> list[tuple[int, int]]:
    """(layer after which it acts, tokens it keeps as they are) of every prune point, from the counts alone."""
    counts, found = LayerCounts(policy, baseline=visual, offered=visual, layers=depth), []
    for point in prune_points(policy, depth):
        stage, count = counts.ask(point)
        assert count is not None
        kept = count
        if isinstance(stage, SparseVLM):
            assert stage.scale is not None
            kept = max(1, int(round(stage.scale * stage.shares[point.turn] * visual, 6)))
            left = counts.alive - kept
            assert count == kept + int((int(0.3 * left) + 1) / 10) + 1
        counts.leave(count)
        found.append((point.layer, kept))
    return found


def expected(model: Any, inputs: dict[str, Any], policy: Policy, sequences: torch.Tensor) -> torch.Tensor:
    """Logits of the same text when the unmodified model masks what the policy should drop."""
    (columns,) = video_columns(model, inputs)
    points = points_of(policy, len(columns), model.config.get_text_config().num_hidden_layers)
    if policy.name == "sparsevlm":
        gone, melted = by_hand(model, inputs, points)
        return masked(model, inputs, sequences[:, :-1], gone, melted=melted)[0][-STEPS:]
    of = "next" if policy.name == "pyramiddrop" else "previous"
    gone = ranked(model, inputs, [Point(after, of, (count,)) for after, count in points])
    return masked(model, inputs, sequences[:, :-1], gone)[0][-STEPS:]


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash"])
@pytest.mark.parametrize("name", NAMES)
def test_a_policy_equals_masks_in_the_unmodified_model(
    asked: tuple[Any, dict[str, Any]], name: str, attention: str
) -> None:
    (model, inputs), policy = asked, load_policy(name, retention_ratio=0.5)
    with kernel(model, attention):
        output, report = run(model, policy, inputs)
    assert torch.allclose(logits(output)[0], expected(model, inputs, policy, output.sequences), atol=1e-5)
    assert 0.5 - 2 / report.baseline_tokens < report.attained_ratio <= 0.5
    assert report.not_run == ()
    assert report.compress_ms > 0


@contextmanager
def watching(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[int]]]:
    """Tokens of each frame that go on after the first prune point of a run."""
    found: list[list[int]] = []

    def look(where: str, plan: object, tokens: LayerTokens) -> LayerCut:
        cut = cut_of(where, plan, tokens)
        found.append(torch.bincount(tokens.frame[cut.index], minlength=int(tokens.frame.max()) + 1).tolist())
        return cut

    with monkeypatch.context() as patch:
        patch.setattr("vidsieve.adapters.layer_prefill.cut_of", look)
        yield found


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_budget_steers_a_policy_by_yaml_alone(
    asked: tuple[Any, dict[str, Any]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = asked
    stages = f"[{{use: vidcom2.frame-budget}}, {{use: {name}.prune}}]"
    text = f"{{format: 1, name: steered, summary: s, retention_ratio: 0.5, stages: {stages}}}"
    steered, plain = read_policy(text, "steered.yaml"), load_policy(name, retention_ratio=0.5)
    kept = {}
    for policy in (steered, plain):
        with watching(monkeypatch) as found:
            run(model, policy, inputs)
        kept[policy.name] = found[0]
    assert kept["steered"] != kept[name]
    assert sum(kept["steered"]) == sum(kept[name])


def test_released_depths_do_not_fit_a_shallow_decoder_and_say_so(asked: tuple[Any, dict[str, Any]]) -> None:
    model, inputs = asked
    for name in ("pyramiddrop-released", "sparsevlm-released"):
        with pytest.raises(PolicyError, match=r"prune: after .* so that a layer comes after"):
            run(model, load_policy(name), inputs)
