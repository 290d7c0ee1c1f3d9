"""A merge is a decision; the core carries it out on features, weights and every other row."""

import pytest
import torch
from framework.kit import answering, policy, ramp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vidsieve.framework.errors import InputError
from vidsieve.framework.planning.pipeline import TokenPlan
from vidsieve.framework.plans import Keep, Merge


def merged(features: Tensor, *merges: Merge | Keep) -> TokenPlan:
    """The plan of a policy that merges so, one stage after the other."""
    stages = [(f"m{n}", answering(merge_tokens=merge)) for n, merge in enumerate(merges)]
    return policy(*stages, ratio=0.5, exact=False).plan(features)


def test_assign_says_where_every_token_goes() -> None:
    plan = Merge.assign(torch.tensor([[0, 0, 2], [-1, 2, 5]]))
    assert plan.source.tolist() == [0, 1, 2, 4, 5]
    assert plan.target.tolist() == [0, 0, 2, 2, 5]


def test_a_merge_takes_means_in_the_place_of_its_targets() -> None:
    features = torch.tensor([[[1.0], [3.0], [5.0]], [[9.0], [7.0], [11.0]]])
    plan = merged(features, Merge.assign(torch.tensor([[0, 0, 2], [-1, 2, 5]])))
    assert plan.index.tolist() == [0, 2, 5]
    assert plan.features.squeeze(1).tolist() == [2.0, 6.0, 11.0]
    assert plan.weight.tolist() == [2.0, 2.0, 1.0]
    assert plan.report.per_frame == ((2, 1),)


def test_weights_of_the_pairs_weigh_the_mean_and_leave_the_number_of_originals() -> None:
    pairs = Merge(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([0.25, 0.75]))
    plan = merged(torch.tensor([[[0.0], [8.0]]]), pairs)
    assert plan.features.item() == 6.0
    assert plan.weight.tolist() == [2.0]


def test_a_second_merge_weighs_by_the_originals_a_token_stands_for() -> None:
    features = torch.tensor([[[0.0], [0.0], [0.0], [8.0]]])
    plan = merged(features, Merge.assign(torch.tensor([0, 0, 0, 3])), Merge.assign(torch.tensor([0, -1, -1, 0])))
    assert plan.features.item() == 2.0, "three zeros and one eight"
    assert plan.weight.tolist() == [4.0]


def test_a_token_split_over_two_targets_is_still_one_original() -> None:
    pairs = Merge(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 2, 2]), torch.tensor([1.0, 0.25, 0.75, 1.0]))
    plan = merged(torch.tensor([[[0.0], [4.0], [8.0]]]), pairs)
    assert plan.weight.tolist() == [1.25, 1.75]
    assert plan.features.squeeze(1).tolist() == pytest.approx([0.25 * 4 / 1.25, (0.75 * 4 + 8) / 1.75])


def test_a_token_that_weighs_nothing_for_any_of_its_targets_is_still_one_original() -> None:
    pairs = Merge(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 2, 2]), torch.tensor([1.0, 0.0, 0.0, 1.0]))
    plan = merged(torch.tensor([[[0.0], [4.0], [8.0]]]), pairs)
    assert plan.weight.tolist() == [1.5, 1.5]
    assert plan.features.squeeze(1).tolist() == [0.0, 8.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_tokens_that_melt_with_nothing_pass_bit_by_bit(dtype: torch.dtype) -> None:
    features = torch.randn(2, 4, 3, dtype=torch.float64).to(dtype)
    plan = merged(features, Merge.assign(torch.tensor([0, 1, 2, 3, 4, 5, 6, 6])))
    assert torch.equal(plan.features[:6], features.flatten(0, 1)[:6])


def test_means_are_taken_in_float32_whatever_the_model_runs_in() -> None:
    features = torch.full((1, 1025, 1), 1.0, dtype=torch.bfloat16)
    features[0, 0] = 257.0  # bfloat16 sums of ones stop growing at 256
    plan = merged(features, Merge.assign(torch.zeros(1025, dtype=torch.int64)))
    assert plan.features.dtype == torch.bfloat16
    assert plan.features.item() == torch.tensor((257 + 1024) / 1025).bfloat16().item()


def test_other_rows_are_carried_by_the_same_merges_and_drops() -> None:
    features, deepstack = torch.randn(2, 3, 4), torch.randn(6, 2, 5)
    into = torch.tensor([0, 0, 2, 0, -1, 5])
    keep = Keep(torch.tensor([[True, False, False], [False, False, True]]))
    plan = merged(features, Merge.assign(into), keep)
    expected = torch.stack([deepstack[[0, 1, 3]].mean(dim=0), deepstack[5]])
    assert torch.allclose(plan.carry(deepstack), expected, atol=1e-6)
    assert torch.allclose(plan.carry(features.flatten(0, 1)), plan.features)


def test_positions_are_those_of_the_target_and_never_averaged() -> None:
    plan = merged(torch.randn(1, 4, 2), Merge.assign(torch.tensor([0, 0, 2, 2])))
    assert plan.carry(torch.tensor([10, 20, 30, 40])).tolist() == [10, 30]
    assert plan.carry(torch.tensor([True, False, False, True])).tolist() == [True, False]


@pytest.mark.parametrize("rows", [3, 5, 0])
def test_rows_of_another_number_are_refused(rows: int) -> None:
    plan = merged(torch.randn(1, 4, 2), Merge.assign(torch.tensor([0, 0, 2, 2])))
    with pytest.raises(InputError, match="carry: 4 rows asked"):
        plan.carry(torch.zeros(rows, 2))


@st.composite
def assignments(draw: st.DrawFn) -> Tensor:
    """Some tokens are targets, the others melt into one or are dropped."""
    size = draw(st.integers(2, 12))
    targets = draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=size - 1))
    others = st.sampled_from([-1, *sorted(targets)])
    return torch.tensor([token if token in targets else draw(others) for token in range(size)])


@settings(deadline=None)
@given(assignments())
def test_what_goes_in_comes_out(into: Tensor) -> None:
    """Weights sum to the tokens named, and the weighted features to their sum."""
    features = torch.randn(1, len(into), 3)
    plan = merged(features, Merge.assign(into))
    named = into >= 0
    assert plan.weight.sum().item() == named.sum().item()
    assert plan.index.tolist() == sorted(set(into[named].tolist()))
    assert torch.allclose((plan.features * plan.weight[:, None]).sum(0), features[0, named].sum(0), atol=1e-4)


def test_a_merge_that_closes_is_not_mended() -> None:
    plan = policy(("m", answering(merge_tokens=Merge.assign(torch.tensor([0, 0, 2, 3])))), ratio=0.5).plan(ramp(1, 4))
    assert plan.report.kept_tokens == 3
