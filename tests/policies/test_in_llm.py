"""FastV, PyramidDrop and SparseVLM: counts and choices worked out by hand."""

import pytest
import torch
from torch import Tensor

from vidsieve import load_policy
from vidsieve.framework.errors import PolicyError, RetentionError
from vidsieve.framework.planning.attainable import LayerCounts, prune_points
from vidsieve.framework.plans import Budget
from vidsieve.framework.policy.file import read_policy
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoShape
from vidsieve.policies.fastv import FastV
from vidsieve.policies.pyramiddrop import PyramidDrop
from vidsieve.policies.shared.prune_depth import prune_after
from vidsieve.policies.sparsevlm import SparseVLM, SparseVLMByRank, density_peaks, raters
from vidsieve.testing import rank_layer


def entered(policy: Policy, offered: int, layers: int) -> LayerCounts:
    """A video taken through a decoder."""
    counts = LayerCounts(policy, baseline=offered, offered=offered, layers=layers)
    for point in prune_points(policy, layers):
        count = counts.ask(point)[1]
        assert count is not None
        counts.leave(count)
    counts.enter(layers - 1)
    return counts


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values)[None]


# ------------------------------------------------------------------------------------------------ where and how many


@pytest.mark.parametrize(
    ("after", "layers", "found"),
    [
        ((1,), 32, (1,)),
        ((0.0625,), 32, (1,)),  # the paper's K = 2
        ((0.0625,), 28, (1,)),
        ((0.0625, 0.25, 0.5), 32, (1, 7, 15)),
        ((0.0625, 0.25, 0.5), 28, (1, 6, 13)),
        ((0.094, 0.219, 0.5), 32, (2, 6, 15)),
        ((0.25, 0.5, 0.75), 28, (6, 13, 20)),
        ((0.0625, 0.25, 0.5), 4, (0, 0, 1)),
    ],
)
def test_depths_are_layers_or_shares_of_them(
    after: tuple[int | float, ...], layers: int, found: tuple[int, ...]
) -> None:
    assert prune_after("here", after, layers) == found


@pytest.mark.parametrize("after", [(31,), (5, 2), (0.99,), (40,)])
def test_depths_that_do_not_fit_are_refused(after: tuple[int | float, ...]) -> None:
    with pytest.raises(PolicyError, match=r"after layers .* of 32"):
        prune_after("here", after, 32)


@pytest.mark.parametrize(("offered", "ratio", "left"), [(65, 0.5, 32), (67, 0.5, 34), (392, 5 / 26, 75), (10, 0.0, 1)])
def test_fastv_rounds_half_to_even(offered: int, ratio: float, left: int) -> None:
    assert FastV(keep_ratio=ratio).leaves(offered, 32) == (left,)


def test_pyramiddrop_counts_from_the_first_offer_and_truncates() -> None:
    assert PyramidDrop(keep_ratio=0.5).leaves(57, 32) == (28, 14, 7)
    assert PyramidDrop(keep_ratio=0.35, after=(2,)).leaves(100, 32) == (35,)


def test_sparsevlm_counts_are_the_codes_table_with_what_melts() -> None:
    # 83 candidates melt into 9, 33 into 4, 29 into 3
    assert SparseVLM(scale=1.0).leaves(576, 32) == (309, 204, 113)
    assert SparseVLM(scale=1.0, recycle=False).leaves(576, 32) == (300, 200, 110)


def test_sparsevlm_released_is_the_code_for_192_tokens_with_its_own_count() -> None:
    counts = entered(load_policy("sparsevlm-released"), 576, 32)
    assert counts.entered == [576] * 3 + [309] * 4 + [204] * 9 + [113] * 16
    # the code's logger counts what leaves each layer: one layer earlier at each point
    logged = 2 * 576 + 4 * 309 + 9 * 204 + 17 * 113
    assert logged / 32 == pytest.approx(192.03, abs=0.01)
    assert counts.ratio * 576 == pytest.approx(206.5, abs=0.1)


# ------------------------------------------------------------------------------------------------ what 25 % means


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "sparsevlm"])
@pytest.mark.parametrize(("ratio", "layers"), [(0.5, 28), (0.25, 28), (0.25, 32), (0.15, 32)])
def test_the_mean_over_layers_is_the_ratio(name: str, ratio: float, layers: int) -> None:
    counts = entered(load_policy(name, retention_ratio=ratio), 6272, layers)
    assert ratio - 1 / 6272 < counts.ratio <= ratio


@pytest.mark.parametrize(
    ("name", "layers", "ratio", "shares"),
    [
        ("fastv", 28, 0.25, (0.1923,)),
        ("fastv", 32, 0.15, (0.0933,)),
        ("pyramiddrop", 32, 0.25, (0.4596, 0.4596**2, 0.4596**3)),
        ("pyramiddrop", 28, 0.15, (0.2754, 0.2754**2, 0.2754**3)),
    ],
)
def test_solved_shares_are_those_worked_out_from_the_definition(
    name: str, layers: int, ratio: float, shares: tuple[float, ...]
) -> None:
    policy = load_policy(name, retention_ratio=ratio)
    found = entered(policy, 100_000, layers).entered
    behind = [found[point.layer + 1] / 100_000 for point in prune_points(policy, layers)]
    assert behind == pytest.approx(shares, abs=2e-4)


def test_released_forms_average_what_their_papers_settings_average() -> None:
    assert entered(load_policy("pyramiddrop-released"), 576, 32).ratio == pytest.approx(0.469, abs=1e-3)
    assert entered(load_policy("fastv-released"), 576, 32).ratio == pytest.approx((2 + 30 * 0.5) / 32)


def test_the_papers_own_depths_cannot_reach_a_quarter_and_say_so() -> None:
    stages = "[{use: pyramiddrop.prune, after: [7, 15, 23]}]"
    deep = read_policy(f"{{format: 1, name: deep, summary: s, retention_ratio: 0.2, stages: {stages}}}", "deep.yaml")
    assert deep.attainable(VideoShape(8, 100, 32))[0] == pytest.approx(0.25, abs=1e-3)
    with pytest.raises(RetentionError, match=r"0\.2 asked.*reaches 0\.25\d* to 1"):
        deep.plan(torch.randn(8, 100, 4), layers=32)


# ------------------------------------------------------------------------------------------------ which tokens


def test_fastv_reads_the_last_row_and_means_over_heads() -> None:
    attention = torch.tensor([[[9.0, 0.0, 0.0], [0.1, 0.2, 0.3]], [[9.0, 0.0, 0.0], [0.5, 0.1, 0.1]]])
    assert rank_layer(FastV(keep_ratio=0.5), attention, count=1).tolist() == [0]
    assert rank_layer(FastV(keep_ratio=0.5), attention, count=2).tolist() == [0, 2]


def test_raters_are_words_more_like_the_video_than_the_mean() -> None:
    video, text = (
        torch.tensor([[1.0, 0.0], [0.5, 0.5]]),
        torch.tensor([[2.0, 0.0], [0.0, 0.1], [1.9, 0.3], [-1.0, 0.0]]),
    )
    likeness = (video @ text.T).softmax(dim=1).mean(dim=0)
    assert raters(video, text).tolist() == [i for i, value in enumerate(likeness) if value > likeness.mean()] == [0, 2]
    assert raters(video, text[:0]).tolist() == []
    assert raters(video, text[:1]).tolist() == []


WORDS = {"visual_inputs": torch.ones(6, 1), "text_inputs": torch.tensor([[1.0], [0.0]]), "text": torch.zeros(2, 1)}


def test_sparsevlm_keeps_what_raters_attend_to_not_what_the_last_word_does() -> None:
    attention = rows([0.1, 0.6, 0.2, 0.6, 0.5, 0.4], [9.0, 0.0, 9.0, 0.0, 0.0, 0.0])
    stage = SparseVLM(scale=1.0, shares=(0.5,), after=(2,), recycle=False)
    assert rank_layer(stage, attention, **WORDS).tolist() == [1, 3, 4]


def test_without_raters_the_last_token_rates() -> None:
    attention = rows([0.1, 0.6, 0.2, 0.6, 0.5, 0.4])
    stage = SparseVLM(scale=1.0, shares=(0.5,), after=(2,), recycle=False)
    assert rank_layer(stage, attention).tolist() == [1, 3, 4]


def test_melted_tokens_stand_at_their_centre_or_behind_the_rest() -> None:
    attention, hidden = rows([0.1, 0.6, 0.2, 0.6, 0.5, 0.4]), torch.arange(12.0).view(6, 2)
    centre = SparseVLM(scale=1.0, shares=(0.5,), after=(2,))
    assert rank_layer(centre, attention, hidden=hidden).tolist() == [1, 3, 4, 5]
    early = rows([0.4, 0.6, 0.2, 0.6, 0.5, 0.1])
    behind = SparseVLM(scale=1.0, shares=(0.5,), after=(2,), melted="behind")
    assert rank_layer(behind, early, hidden=hidden).tolist() == [1, 3, 4, 0]
    assert rank_layer(centre, early, hidden=hidden).tolist() == [0, 1, 3, 4]


def test_a_frame_budget_shares_what_each_stage_keeps() -> None:
    attention, frame = rows([0.1, 0.6, 0.2, 0.6, 0.5, 0.4]), torch.tensor([0, 0, 0, 1, 1, 1])
    budget = Budget(share=torch.tensor([2.0, 1.0]))
    for stage in (
        FastV(keep_ratio=0.5),
        PyramidDrop(keep_ratio=0.5),
        SparseVLM(scale=1.0, shares=(0.5,), after=(2,), recycle=False),
    ):
        assert rank_layer(stage, attention, count=3, frame=frame, budget=budget).tolist() == [1, 2, 3], stage


def test_clusters_join_their_nearest_peak() -> None:
    draw = torch.Generator().manual_seed(4)
    blobs = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]]).repeat_interleave(5, dim=0)
    centres, into = density_peaks(blobs + 0.5 * torch.randn(15, 2, generator=draw), 3)
    assert sorted(int(centre) // 5 for centre in centres) == [0, 1, 2]
    assert [into[5 * blob : 5 * blob + 5].unique().numel() for blob in range(3)] == [1, 1, 1]
    assert [int(into[centre]) for centre in centres] == [0, 1, 2]


@pytest.mark.parametrize(("scale", "bias", "kept"), [(1.0, 0.0, 2), (1.5, 1.0, 4), (99.0, 0.0, 5), (0.0, 0.0, 1)])
def test_the_rank_of_the_raters_attention_decides_the_count(scale: float, bias: float, kept: int) -> None:
    attention = rows([0.1, 0.6, 0.2, 0.6, 0.5, 0.4], [0.3, 0.1, 0.2, 0.0, 0.7, 0.2], [0.2, 1.2, 0.4, 1.2, 1.0, 0.8])
    words = {"visual_inputs": torch.ones(6, 1), "text_inputs": torch.tensor([[1.0], [1.0], [1.0], [-9.0]])}
    stage = SparseVLMByRank(scale=scale, bias=bias, after=(1,), recycle=False)
    assert len(rank_layer(stage, attention, text=torch.zeros(4, 1), **words)) == kept


def test_a_share_for_every_layer() -> None:
    with pytest.raises(PolicyError, match="3 layers in after, 1 shares"):
        SparseVLM(scale=1.0, shares=(0.5,)).layers(32)
