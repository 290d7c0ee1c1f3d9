"""V2Drop: counts and choices worked out by hand."""

import pytest
import torch

from vidsieve import load_policy
from vidsieve.framework.plans import Budget
from vidsieve.framework.stage import Stage
from vidsieve.policies.v2drop import V2Drop
from vidsieve.testing import StageContract, rank_layer

NO_ATTENTION = torch.full((1, 1, 5), float("nan"))


class TestV2Drop(StageContract):
    def make_stage(self) -> Stage:
        return V2Drop()


def test_what_a_layer_changed_most_goes_on() -> None:
    before = torch.tensor([[9.0, 9.0], [0.0, 0.0], [1.0, 1.0], [5.0, 0.0], [0.0, 0.0]])
    change = torch.tensor([[0.1, 0.0], [3.0, 4.0], [0.0, 4.9], [-6.0, 0.0], [1.0, 1.0]])  # 0.1, 5, 4.9, 6, 1.41
    shown = {"hidden_before": before, "hidden": before + change}
    assert rank_layer(V2Drop(keep_ratio=0.5), NO_ATTENTION, count=2, **shown).tolist() == [1, 3]
    assert rank_layer(V2Drop(keep_ratio=0.5), NO_ATTENTION, count=3, **shown).tolist() == [1, 2, 3]


def test_equal_changes_go_to_the_earlier_token() -> None:
    assert rank_layer(V2Drop(keep_ratio=0.5), NO_ATTENTION, count=2).tolist() == [0, 1]


def test_half_floats_are_compared_in_float32() -> None:
    before = torch.zeros(5, 400, dtype=torch.bfloat16)
    hidden = torch.full((5, 400), 1.0, dtype=torch.bfloat16)
    hidden[3, 0] = 1.0625  # 1.0625² alone would be lost in a bfloat16 sum of 400
    assert rank_layer(V2Drop(keep_ratio=0.2), NO_ATTENTION, count=1, hidden=hidden, hidden_before=before).tolist() == [
        3
    ]


def test_a_frame_budget_shares_the_count() -> None:
    hidden = torch.tensor([[5.0], [4.0], [3.0], [2.0], [1.0]])
    frame = torch.tensor([0, 0, 0, 1, 1])
    budget = Budget(share=torch.tensor([1.0, 2.0]))
    found = rank_layer(V2Drop(keep_ratio=0.5), NO_ATTENTION, count=3, hidden=hidden, frame=frame, budget=budget)
    assert found.tolist() == [0, 3, 4]


@pytest.mark.parametrize(
    ("stage", "left"),
    [
        (V2Drop(keep_ratio=0.5), (288, 144, 72)),
        (V2Drop(keep_ratio=0.5, leave_one=True), (288, 144, 1)),
        (V2Drop(keep_ratio=0.0), (1, 1, 1)),
    ],
)
def test_counts_are_the_codes(stage: V2Drop, left: tuple[int, ...]) -> None:
    assert stage.leaves(576, 32) == left


def test_the_published_depths_are_the_codes_on_32_layers() -> None:
    for name in ("v2drop", "v2drop-released"):
        assert load_policy(name).stages[0].stage.layers(32) == (2, 16, 21)
