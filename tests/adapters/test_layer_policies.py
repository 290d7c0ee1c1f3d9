"""The published policies that prune inside the decoder, on the bundled models, against full-length masked runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from adapters.kernels import KERNELS, kernel
from adapters.sparsevlm_by_hand import by_hand, plus_by_hand

from vidsieve import load_policy
from vidsieve.framework.errors import PolicyError
from vidsieve.framework.planning.attainable import LayerCounts, prune_points
from vidsieve.framework.planning.layer_cut import LayerCut, cut_of
from vidsieve.framework.plans import apportion
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import LayerTokens
from vidsieve.policies.sparsevlm import SparseVLM
from vidsieve.testing.adapter_decoder_kit import Point, masked, ranked, video_columns
from vidsieve.testing.adapter_kit import STEPS, logits, run

NAMES = ("fastv", "pyramiddrop", "sparsevlm")


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


@pytest.mark.parametrize("attention", KERNELS)
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


@pytest.mark.parametrize("distance", ["bounded", "released"])
def test_sparsevlm_plus_equals_masks_in_the_unmodified_model(asked: tuple[Any, dict[str, Any]], distance: str) -> None:
    model, inputs = asked
    policy = load_policy("sparsevlm-plus", retention_ratio=0.5, settings={"sparsevlm.prune.distance": distance})
    output, report = run(model, policy, inputs)
    (columns,) = video_columns(model, inputs)
    text = model.config.get_text_config()
    counts, points = LayerCounts(policy, baseline=len(columns), offered=len(columns), layers=text.num_hidden_layers), []
    for point in prune_points(policy, text.num_hidden_layers):
        points.append((point.layer, counts.ask(point)[1]))
        counts.leave(points[-1][1])
    gone = plus_by_hand(model, inputs, points, heads=text.num_attention_heads // 2, bounded=distance == "bounded")
    truth = masked(model, inputs, output.sequences[:, :-1], gone)[0][-STEPS:]
    assert torch.allclose(logits(output)[0], truth, atol=1e-5)
    assert 0.5 - 2 / report.baseline_tokens < report.attained_ratio <= 0.5


@contextmanager
def watching(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[list[int], list[int] | None]]]:
    """Tokens of each frame that go on as they are at each prune point of a run, and what a live Budget asks for."""
    found: list[tuple[list[int], list[int] | None]] = []

    def look(where: str, plan: object, tokens: LayerTokens) -> LayerCut:
        cut = cut_of(where, plan, tokens)
        frames = int(tokens.frame.max()) + 1
        index = cut.index if cut.merge is None else cut.index[~cut.merge.mixed[cut.index]]
        kept = torch.bincount(tokens.frame[index], minlength=frames)
        asked = None
        if tokens.budget is not None:
            assert tokens.budget.share is not None
            offered = torch.bincount(tokens.frame, minlength=frames)
            asked = apportion(tokens.budget.share[:frames], int(kept.sum()), offered).tolist()
        found.append((kept.tolist(), asked))
        return cut

    with monkeypatch.context() as patch:
        patch.setattr("vidsieve.adapters.decoder.layer_prefill.cut_of", look)
        yield found


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop"])
def test_a_frame_budget_steers_a_policy_by_yaml_alone(
    asked: tuple[Any, dict[str, Any]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = asked
    found = {}
    for one in (name, f"vidcom2-{name}"):
        with watching(monkeypatch) as found[one]:
            run(model, load_policy(one, retention_ratio=0.5), inputs)
    plain, steered = found[name], found[f"vidcom2-{name}"]
    assert [sum(kept) for kept, _ in plain] == [sum(kept) for kept, _ in steered]
    assert all(kept == wanted for kept, wanted in steered)
    assert plain[0][0] != steered[0][0]


def test_a_frame_budget_steers_what_sparsevlm_keeps(
    asked: tuple[Any, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = asked
    with watching(monkeypatch) as plain:
        run(model, load_policy("sparsevlm", retention_ratio=0.5, settings={"sparsevlm.prune.recycle": False}), inputs)
    with watching(monkeypatch) as steered:
        policy = load_policy("vidcom2-sparsevlm", retention_ratio=0.5, settings={"sparsevlm.prune.recycle": False})
        run(model, policy, inputs)
    assert all(kept == wanted for kept, wanted in steered)
    assert plain[0][0] != steered[0][0]
    # what melts is not shared out, but counts
    _, report = run(model, load_policy("vidcom2-sparsevlm", retention_ratio=0.5), inputs)
    assert 0.5 - 2 / report.baseline_tokens < report.attained_ratio <= 0.5


def test_released_depths_do_not_fit_a_shallow_decoder_and_say_so(asked: tuple[Any, dict[str, Any]]) -> None:
    model, inputs = asked
    for name in ("pyramiddrop-released", "sparsevlm-released", "sparsevlm-plus-released"):
        with pytest.raises(PolicyError, match=r"prune: after .* so that a layer comes after"):
            run(model, load_policy(name), inputs)
