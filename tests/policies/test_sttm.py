"""STTM: quadtree and chains over time by hand, against a slow direct computation, on any grid."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies.sttm_by_hand import by_hand
from torch import Tensor

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.stage import Stage
from vidsieve.policies.sttm import STTM, Pyramid, lasting, parents
from vidsieve.testing import StageContract, rank_layer


class TestSTTM(StageContract):
    def make_stage(self) -> Stage:
        return STTM()


def groups(states: Tensor, cell: Tensor, grid: tuple[int, int, int], setting: tuple[float, float, int]) -> dict:
    """By token that stays: who melts into it, and with what share of the mean."""
    found = Pyramid(states, cell, grid, setting[2]).nodes(setting[0])
    label = lasting(found, cell, grid, setting[1])
    into = found.first[label][found.node].tolist()
    parts: dict[int, dict[int, float]] = {}
    for i, target in enumerate(into):
        parts.setdefault(int(cell[target]), {})[int(cell[i])] = float(found.part[i])
    return parts


def plain_regions(seed: int, frames: int, height: int, width: int) -> Tensor:
    """States with flat patches, so that all levels of a tree occur."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randn(frames, -(-height // 3), -(-width // 3), 5, generator=draw)
    coarse = coarse[:1] + 0.4 * coarse
    flat = coarse.repeat_interleave(3, dim=1)[:, :height].repeat_interleave(3, dim=2)[:, :, :width]
    return (flat + 0.3 * torch.randn(frames, height, width, 5, generator=draw)).flatten(0, 2)


@settings(max_examples=40, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    thresholds=st.tuples(st.floats(0.3, 0.99), st.floats(0.3, 0.99), st.integers(0, 2)),
    alive=st.sampled_from([1.0, 0.7]),
    seed=st.integers(0, 999),
)
def test_it_is_the_slow_rule(
    grid: tuple[int, int, int], thresholds: tuple[float, float, int], alive: float, seed: int
) -> None:
    cells = grid[0] * grid[1] * grid[2]
    kept = torch.rand(cells, generator=torch.Generator().manual_seed(seed)) < alive
    cell = torch.arange(cells)[kept]
    if not len(cell):
        return
    states = plain_regions(seed, *grid)[kept]
    found, expected = groups(states, cell, grid, thresholds), by_hand(states, cell.tolist(), grid, thresholds)
    assert found.keys() == expected.keys()
    for target, parts in expected.items():
        assert found[target] == pytest.approx(parts)


def test_an_even_picture_melts_into_the_cells_of_the_root_and_then_over_time() -> None:
    states, cell = torch.ones(3 * 16, 2), torch.arange(3 * 16)
    assert sorted(groups(states, cell, (3, 4, 4), (0.9, 2.0, 0))) == [
        16 * f + i for f in range(3) for i in (0, 2, 8, 10)
    ]
    assert sorted(groups(states, cell, (3, 4, 4), (0.9, 0.9, 0))) == [0, 2, 8, 10]
    assert len(groups(states, cell, (3, 4, 4), (0.9, 2.0, 1))) == 48


def test_one_odd_token_keeps_its_cell_apart() -> None:
    states = torch.ones(16, 2)
    states[5] = torch.tensor([-1.0, 1.0])
    found = groups(states, torch.arange(16), (1, 4, 4), (0.95, 0.9, 0))
    assert sorted(found) == [0, 1, 2, 4, 5, 8, 10]
    assert found[2] == pytest.approx({2: 0.25, 3: 0.25, 6: 0.25, 7: 0.25})


def test_an_odd_side_leaves_its_first_row_alone() -> None:
    up = parents(3, 5, 0)
    assert len(up) == 1
    assert up[0].view(3, 5).tolist() == [[0, 1, 1, 2, 2], [3, 4, 4, 5, 5], [3, 4, 4, 5, 5]]
    assert parents(2, 9, 0) == parents(4, 4, 1) == ()


def test_tokens_stand_at_the_top_left_of_their_earliest_region() -> None:
    hidden, place = torch.ones(32, 3), torch.arange(32) % 16
    shown = {"hidden": hidden, "token": place, "frame": torch.arange(32) // 16, "token_grid": (2, 4, 4)}
    assert rank_layer(STTM(root_level=0), torch.zeros(1, 1, 32), **shown).tolist() == [0, 2, 8, 10]


@pytest.mark.parametrize("afford", [70.0, 40.0, 25.5, 9.0])
def test_thresholds_are_lowered_as_little_as_the_ratio_takes(afford: float) -> None:
    states, cell = plain_regions(5, 3, 6, 8), torch.arange(144)
    shown = {"hidden": states, "token": cell % 48, "frame": cell // 48, "token_grid": (3, 6, 8)}
    stage = STTM(similarity=0.99, temporal_similarity=0.95, root_level=0)
    assert len(rank_layer(stage, torch.zeros(1, 1, 144), **shown)) > 70
    kept = rank_layer(stage, torch.zeros(1, 1, 144), afford=afford, **shown).tolist()
    assert len(kept) <= afford
    # as many as with the highest thresholds found by hand
    counts = {}
    for step in range(400):
        lower = step / 200
        counts[step] = len(groups(states, cell, (3, 6, 8), (0.99 - lower, 0.95 - lower, 0)))
        if counts[step] <= afford:
            break
    assert abs(len(kept) - counts[step]) <= 2


def test_thresholds_stay_where_fewer_tokens_are_left_than_asked_for() -> None:
    shown = {"hidden": torch.ones(32, 3), "token": torch.arange(32) % 16, "frame": torch.arange(32) // 16}
    stage, shown = STTM(root_level=0), shown | {"token_grid": (2, 4, 4)}
    assert len(rank_layer(stage, torch.zeros(1, 1, 32), afford=20.0, **shown)) == 4


def test_a_ratio_below_what_the_tree_can_leave_gets_the_least_there_is() -> None:
    cell = torch.arange(32)
    shown = {"hidden": torch.randn(32, 3), "token": cell % 16, "frame": cell // 16, "token_grid": (2, 4, 4)}
    assert rank_layer(STTM(root_level=0), torch.zeros(1, 1, 32), afford=1.0, **shown).tolist() == [0, 2, 8, 10]


def test_without_a_grid_it_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"sttm\.merge: .*token_grid was asked, none came"):
        rank_layer(STTM(), torch.zeros(1, 1, 4))
