"""The doors for outside results: recorded attention in, kept indices out, with numbers worked out by hand."""

from typing import Any

import pytest
import torch
from framework.kit import answering, forge
from torch import Tensor

from vidsieve.framework.errors import PlanError, StageError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import KeepKV
from vidsieve.framework.records import DecodeStep
from vidsieve.framework.stage import Stage, tunable
from vidsieve.testing import select_kv


class Top(Stage):
    """The two visual entries of the highest mean attention; remembers how often it was asked."""

    every: int = tunable(1, low=0, high=9)

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return (num_layers // 2,)

    @hookimpl
    def prune_kv(self, step: DecodeStep) -> KeepKV:
        asked = 0 if step.state is None else int(step.state["asked"])
        index = step.attention.mean(dim=1).argsort(dim=1, descending=True, stable=True)[:, :2]
        active = torch.full((len(index),), self.every != 0)
        return KeepKV(index, active, {"asked": torch.tensor(asked + 1), "layer": torch.tensor(step.layer)})


# two heads over ten keys; the visual ones are 3 to 7, with means .1 .4 .2 .05 .3
ATTENTION = torch.tensor(
    [[0.9, 0.9, 0.9, 0.2, 0.8, 0.0, 0.1, 0.3, 0.9, 0.9], [0.9, 0.9, 0.9, 0.0, 0.0, 0.4, 0.0, 0.3, 0.9, 0.9]]
)


def test_text_is_always_kept_and_indices_are_those_of_the_keys() -> None:
    kept, _ = select_kv(Top(), ATTENTION, (3, 5))
    assert kept.tolist() == [0, 1, 2, 4, 7, 8, 9]


def test_state_is_handed_from_step_to_step() -> None:
    _, state = select_kv(Top(), ATTENTION, (3, 5), num_layers=12)
    assert state is not None
    assert (int(state["asked"]), int(state["layer"])) == (1, 6)
    _, state = select_kv(Top(), ATTENTION, (3, 5), state)
    assert state is not None
    assert int(state["asked"]) == 2


def test_a_step_left_alone_keeps_everything() -> None:
    kept, _ = select_kv(Top(every=0), ATTENTION, (3, 5))
    assert kept.tolist() == list(range(10))


def test_places_left_empty_keep_nothing() -> None:
    fewer = answering(prune_kv=KeepKV(torch.tensor([[2, -1, -1]]), torch.tensor([True])), layers=(0,))
    assert select_kv(fewer, ATTENTION, (3, 5))[0].tolist() == [0, 1, 2, 5, 8, 9]


def test_half_precision_is_shown_in_float32_one_row_all_valid() -> None:
    seen: list[DecodeStep] = []

    def look(step: DecodeStep) -> KeepKV:
        seen.append(step)
        return KeepKV(torch.tensor([[0]]), torch.tensor([True]))

    select_kv(answering(prune_kv=look, layers=(4,)), ATTENTION.bfloat16(), (3, 5))
    [step] = seen
    assert step.attention.dtype == torch.float32
    assert step.attention.shape == (1, 2, 5)
    assert step.valid.tolist() == [[True] * 5]
    assert (step.counts, step.layer, step.state) == ((5,), 4, None)


INDEX, ON = torch.tensor([[0, 1]]), torch.tensor([True])


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (None, "returned nothing; return KeepKV"),
        (INDEX, "must return KeepKV, got Tensor"),
        (forge(KeepKV, index=INDEX.expand(2, 2), active=ON), r"KeepKV.index must have shape \(1, any\), got \(2, 2\)"),
        (forge(KeepKV, index=INDEX.float(), active=ON), "KeepKV.index must be int, got float32"),
        (forge(KeepKV, index=INDEX, active=ON.long()), "KeepKV.active must be bool, got int64"),
        (forge(KeepKV, index=INDEX, active=torch.tensor([True, True])), r"KeepKV.active must have shape \(1\)"),
        (KeepKV(INDEX.to("meta"), ON), "must be on cpu"),
        (KeepKV(INDEX + 4, ON), "must be below the 5 visual tokens, got 5"),
    ],
)
def test_a_bad_answer_is_refused(plan: Any, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        select_kv(answering(prune_kv=plan, layers=(0,)), ATTENTION, (3, 5))


def test_a_stage_that_raises_is_named() -> None:
    def fail(step: DecodeStep) -> Tensor:
        raise ValueError("odd")

    with pytest.raises(StageError, match="prune_kv: raised ValueError: odd"):
        select_kv(answering(prune_kv=fail, layers=(0,)), ATTENTION, (3, 5))
