"""Key norm and SnapKV: which entries stay, worked out by hand, whatever the row they stand in."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsieve import load_policy
from vidsieve.framework.errors import PolicyError
from vidsieve.framework.stage import Stage
from vidsieve.policies.key_norm import KeyNorm
from vidsieve.policies.snapkv import SnapKV
from vidsieve.testing import StageContract, kept_kv

STAGES: dict[str, Any] = {"key-norm": KeyNorm, "snapkv": SnapKV}


class TestKeyNorm(StageContract):
    def make_stage(self) -> Stage:
        return KeyNorm()


class TestSnapKV(StageContract):
    def make_stage(self) -> Stage:
        return SnapKV()


def test_the_shortest_keys_stay_by_their_mean_length_over_heads() -> None:
    # lengths of two heads: means 3, 2, 4, 2.5, 1
    lengths = torch.tensor([[1.0, 3, 4, 2, 1], [5.0, 1, 4, 3, 1]])
    direction = torch.tensor([0.6, 0.0, -0.8])
    keys = (lengths[..., None] * direction)[None]
    assert kept_kv(KeyNorm(keep_ratio=0.4), keys=keys) == [[1, 4]]
    assert kept_kv(KeyNorm(keep_ratio=0.6), keys=keys) == [[1, 3, 4]]


def test_attention_is_summed_over_the_window_and_averaged_over_heads() -> None:
    attention = torch.zeros(1, 2, 4, 6)
    attention[0, 0, 0, 5] = 9.0  # before the window
    attention[0, 0, 2, 1], attention[0, 1, 3, 1] = 0.2, 0.2
    attention[0, 0, 3, 3] = 0.5
    attention[0, 1, 1, 0] = 0.3
    plain = SnapKV(window=3, kernel=1, keep_ratio=0.34)
    assert kept_kv(plain, attention=attention) == [[1, 3]]  # 0.4 and 0.5, before 0.3
    assert kept_kv(SnapKV(window=4, kernel=1, keep_ratio=0.34), attention=attention) == [[3, 5]]


@pytest.mark.parametrize(
    ("pooling", "kept"),
    [
        # of 0 .6 0 0 .5 .4 0 0: means of three .2 .2 .2 .17 .3 .3 .13 0
        ("average", [4, 5]),
        # highest of three .6 .6 .6 .5 .5 .5 .4 0
        ("max", [0, 1]),
    ],
)
def test_neighbours_are_pooled(pooling: str, kept: list[int]) -> None:
    attention = torch.tensor([0.0, 0.6, 0.0, 0.0, 0.5, 0.4, 0.0, 0.0])[None, None, None]
    stage = SnapKV.build({"pooling": pooling, "kernel": 3, "keep_ratio": 0.25})
    assert kept_kv(stage, attention=attention) == [kept]


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any),
    ratio=st.sampled_from([0.05, 0.3, 0.5, 1.0]),
    name=st.sampled_from(sorted(STAGES)),
    seed=st.integers(0, 99),
)
def test_a_padded_batch_equals_its_rows_alone(counts: list[int], ratio: float, name: str, seed: int) -> None:
    draw, most, stage = torch.Generator().manual_seed(seed), max(counts), STAGES[name](keep_ratio=ratio)
    keys = torch.rand(len(counts), 2, most, 3, generator=draw)
    attention = torch.rand(len(counts), 2, 4, most, generator=draw)
    together = kept_kv(stage, keys=keys, attention=attention, counts=tuple(counts))
    for row, count in enumerate(counts):
        assert len(together[row]) == (max(1, int(round(count * ratio, 6))) if count else 0)
        if count:
            one = slice(row, row + 1)
            assert together[row] == kept_kv(stage, keys=keys[one, :, :count], attention=attention[one, ..., :count])[0]


@pytest.mark.parametrize("name", STAGES)
def test_ties_go_to_the_lower_number(name: str) -> None:
    stage = STAGES[name](keep_ratio=0.5)
    attention = torch.zeros(1, 1, 1, 6)
    assert kept_kv(stage, keys=torch.ones(1, 1, 6, 2), attention=attention) == [[0, 1, 2]]


@pytest.mark.parametrize(("name", "depth", "first"), [("key-norm", 32, 2), ("key-norm", 4, 1), ("snapkv", 28, 1)])
def test_published_forms_leave_the_first_layers_alone(name: str, depth: int, first: int) -> None:
    (bound,) = load_policy(name).evict_stages
    assert bound.stage.layers(depth) == tuple(range(first, depth))
    assert set(bound.stage.leaves(100, depth)) == {30}


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("first", [4, 2.5, 0.99])
def test_a_first_layer_the_model_does_not_have_is_refused(name: str, first: float) -> None:
    with pytest.raises(PolicyError, match=rf"{name}.*model of 4 decoder layers"):
        STAGES[name](first=first).layers(4)
