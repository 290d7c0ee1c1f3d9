"""DyCoke's KV stage: which entries a decode step reads, when it chooses anew, and batches."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vidsieve import load_policy
from vidsieve.framework.errors import PolicyError
from vidsieve.framework.records import DecodeStep
from vidsieve.policies.dycoke import DynamicKV
from vidsieve.testing import select_kv


def step_of(
    attention: torch.Tensor, lengths: list[int] | None = None, state: dict[str, Any] | None = None
) -> DecodeStep:
    """A decode step; rows shorter than the widest are padded on the right with attention that must not count."""
    rows, _, visual = attention.shape
    lengths = lengths or [visual] * rows
    valid = torch.arange(visual) < torch.tensor(lengths)[:, None]
    return DecodeStep(attention=attention, valid=valid, counts=tuple(lengths), layer=2, state=state)


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values)[:, None]


def test_the_most_attended_are_read_ties_to_the_lower_number() -> None:
    plan = DynamicKV(drop_ratio=0.5).prune_kv(step_of(rows([0.1, 0.3, 0.1, 0.3, 0.1, 0.1])))
    assert plan.index.tolist() == [[0, 1, 3]]
    assert plan.active.tolist() == [True]


def test_heads_are_averaged() -> None:
    attention = torch.tensor([[[0.9, 0.0, 0.4], [0.0, 0.5, 0.6]]])
    assert DynamicKV(drop_ratio=0.6).prune_kv(step_of(attention)).index.tolist() == [[2]]


def test_an_unmoved_step_keeps_the_choice_or_reads_everything() -> None:
    first, near, far = rows([8.0, 1, 2, 1]), rows([8.0, 2, 1, 1]), rows([1.0, 1, 2, 8])
    for refresh, active in (("reuse", [True, True, True]), ("full", [True, False, True])):
        stage, state, seen, chosen = DynamicKV(drop_ratio=0.5, refresh=refresh), None, [], []
        for attention in (first, near, far):
            plan = stage.prune_kv(step_of(attention, state=state))
            state = plan.state
            seen.append(plan.active.item())
            chosen.append(plan.index[0].tolist())
        assert seen == active
        assert chosen[0] == [0, 2]
        assert chosen[2] == [2, 3]
        if refresh == "reuse":
            assert chosen[1] == [0, 2]


def turned(degrees: float) -> torch.Tensor:
    """Attention that turns from the first token to the second."""
    angle = torch.deg2rad(torch.tensor(degrees))
    return rows([float(angle.cos()), float(angle.sin()), 0.0])


def test_slow_drift_is_noticed_when_the_choice_is_reused() -> None:
    # 5 degrees a step is a cosine of 0.996, never below 0.9; all in all the attention turns by 90
    for refresh, last in (("reuse", [1]), ("full", None)):
        stage, state = DynamicKV(drop_ratio=0.6, refresh=refresh), None
        for degrees in range(0, 91, 5):
            plan = stage.prune_kv(step_of(turned(degrees), state=state))
            state = plan.state
        if last is None:
            assert not plan.active.any()
        else:
            assert plan.index[0].tolist() == last


def test_the_released_form_always_reads_the_last_visual_token() -> None:
    attention = torch.softmax(torch.randn(4, 40, generator=torch.Generator().manual_seed(1)), dim=-1)
    attention[:, 29] = 0
    stage = load_policy("dycoke-released").kv_stages[0].stage
    kept, _ = select_kv(stage, attention, (10, 20))
    # int(19 * (1 - 0.8)) = 3 by attention, and the last
    assert kept.tolist()[:10] == list(range(10))
    assert kept.tolist()[-11:] == [29, *range(30, 40)]
    assert len(kept) == 10 + 3 + 1 + 10


@pytest.mark.parametrize(
    ("visual", "drop", "kept"), [(10, 0.9, 0), (100, 0.9, 9), (100, 0.7, 30), (7, 0.0, 7), (7, 1.0, 0)]
)
def test_the_float_product_is_truncated_as_the_paper_code_does(visual: int, drop: float, kept: int) -> None:
    plan = DynamicKV(drop_ratio=drop).prune_kv(step_of(torch.rand(1, 2, visual)))
    assert plan.index.shape == (1, kept)


def random_steps(seed: int, lengths: list[int], steps: int) -> list[torch.Tensor]:
    """Attention of a few decode steps; some move, some do not; padding holds large numbers."""
    rng = torch.Generator().manual_seed(seed)
    visual = max(lengths)
    current = torch.rand(len(lengths), 3, visual, generator=rng)
    out = []
    for _ in range(steps):
        mix = (torch.rand(len(lengths), 1, 1, generator=rng) < 0.5).float()
        current = mix * torch.rand(current.shape, generator=rng) ** 4 + (1 - mix) * current
        dead = torch.arange(visual) >= torch.tensor(lengths)[:, None]
        out.append(current.masked_fill(dead[:, None], 9.0))
    return out


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    refresh=st.sampled_from(["reuse", "full"]),
    keep_last=st.booleans(),
)
def test_a_padded_batch_equals_its_rows_alone(seed: int, lengths: list[int], refresh: str, keep_last: bool) -> None:
    stage = DynamicKV(drop_ratio=0.6, refresh=refresh, keep_last=keep_last)
    together: Any = None
    alone: list[Any] = [None] * len(lengths)
    for attention in random_steps(seed, lengths, 4):
        plan = stage.prune_kv(step_of(attention, lengths, together))
        together = plan.state
        for row, length in enumerate(lengths):
            single = stage.prune_kv(step_of(attention[row : row + 1, :, :length], [length], alone[row]))
            alone[row] = single.state
            mine = [index for index in plan.index[row].tolist() if index >= 0]
            assert mine == [index for index in single.index[0].tolist() if index >= 0]
            assert all(index < length for index in mine)
            assert mine == sorted(mine)
            assert plan.active[row] == single.active[0]


def test_state_follows_beams_that_change_places() -> None:
    stage = DynamicKV(drop_ratio=0.5)
    steps = random_steps(5, [8, 6, 8], 3)
    order = torch.tensor([2, 0, 0])
    plain = stage.prune_kv(step_of(steps[0], [8, 6, 8]))
    moved = {name: value[order] for name, value in plain.state.items()}
    lengths = [8, 8, 8]
    after = stage.prune_kv(step_of(steps[1][order], lengths, moved))
    straight = stage.prune_kv(step_of(steps[1], [8, 6, 8], plain.state))
    assert torch.equal(after.index, straight.index[order])


def test_the_scale_of_attention_does_not_matter() -> None:
    stage = DynamicKV(drop_ratio=0.5)
    big, small = None, None
    for attention in random_steps(3, [9], 4):
        first = stage.prune_kv(step_of(attention, state=big))
        second = stage.prune_kv(step_of(attention * 2.0**-12, state=small))
        big, small = first.state, second.state
        assert torch.equal(first.index, second.index)


def test_nothing_is_remembered_between_requests() -> None:
    stage = DynamicKV(drop_ratio=0.5, refresh="full")
    attention = step_of(rows([1.0, 2, 3, 4]))
    assert stage.prune_kv(attention).active.all()
    assert stage.prune_kv(attention).active.all()


def test_widths_do_not_change_during_a_request() -> None:
    stage, state = DynamicKV(drop_ratio=0.6, keep_last=True), None
    widths = set()
    for attention in random_steps(8, [10, 4, 0], 5):
        plan = stage.prune_kv(step_of(attention, [10, 4, 0], state))
        state = plan.state
        widths.add(tuple(plan.index.shape))
    assert widths == {(3, 4)}


@pytest.mark.parametrize(
    ("layer", "depth", "point"), [(3, 28, 2), (1, 4, 0), (0.107, 28, 2), (0.5, 24, 11), (0.107, 4, 0)]
)
def test_the_prune_point_is_the_layer_before_the_first_that_sees_fewer(layer: float, depth: int, point: int) -> None:
    assert DynamicKV(layer=layer).layers(depth) == (point,)


@pytest.mark.parametrize(("layer", "depth"), [(4, 4), (28, 4), (2.5, 28), (0.9, 1), (0.99, 4)])
def test_a_layer_the_model_does_not_have_is_refused(layer: float, depth: int) -> None:
    with pytest.raises(PolicyError, match=f"model of {depth} decoder layers"):
        DynamicKV(layer=layer).layers(depth)


@pytest.mark.parametrize("layer", [0, -1, True, "3"])
def test_a_layer_that_is_none_is_refused_with_the_settings(layer: object) -> None:
    with pytest.raises(ValidationError):
        DynamicKV.model_validate({"layer": layer})


def test_attention_in_any_dtype_is_averaged_in_float32() -> None:
    attention = torch.rand(1, 8, 50).bfloat16()
    stage = DynamicKV(drop_ratio=0.5)
    low = stage.prune_kv(step_of(attention.float()))
    assert torch.equal(low.index, stage.prune_kv(replace(step_of(attention.float()), attention=attention)).index)
