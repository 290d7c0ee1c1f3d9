"""Which frames belong together: windows, cuts at unlike neighbours, and clusters of frames."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies.cluster_by_hand import peaks_by_hand, runs_by_hand, segments_of

from vidsieve.framework.stage import Stage
from vidsieve.policies.fixed_windows import FixedWindows
from vidsieve.policies.prunevid import DpcKnnSegments, longest_runs
from vidsieve.policies.shared import dpc_knn
from vidsieve.policies.shared.dpc_knn import density_peaks
from vidsieve.policies.similarity_cuts import SimilarityCuts
from vidsieve.testing import StageContract, video_tokens
from vidsieve.testing.samples import video_features


class TestFixedWindows(StageContract):
    def make_stage(self) -> Stage:
        return FixedWindows(frames=3)


class TestSimilarityCuts(StageContract):
    def make_stage(self) -> Stage:
        return SimilarityCuts(min_segments=2)


class TestDpcKnnSegments(StageContract):
    def make_stage(self) -> Stage:
        return DpcKnnSegments()


def frames_at(*angles: float, tokens: int = 2) -> torch.Tensor:
    """A frame a number, all its tokens at this angle (in degrees) of the plane."""
    radians = torch.deg2rad(torch.tensor(angles))
    return torch.stack([radians.cos(), radians.sin()], dim=-1)[:, None].repeat(1, tokens, 1)


def labels(stage: Stage, features: torch.Tensor, keep: torch.Tensor | None = None) -> list[int]:
    record = video_tokens(*features.shape, features=features)
    record = record if keep is None else replace(record, keep=keep)
    return stage.segment_frames(record).labels.tolist()  # type: ignore[attr-defined]


def test_windows_are_counted_off_and_the_last_is_shorter() -> None:
    assert labels(FixedWindows(frames=3), torch.ones(7, 2, 2)) == [0, 0, 0, 1, 1, 1, 2]
    assert labels(FixedWindows(frames=1), torch.ones(3, 2, 2)) == [0, 1, 2]


def test_cuts_fall_below_the_threshold_and_at_the_least_alike() -> None:
    features = frames_at(0, 10, 80, 85, 105, 107)  # neighbours 10, 70, 5, 20 and 2 degrees apart
    # cos 20° = 0.9397, cos 70° = 0.342
    assert labels(SimilarityCuts(min_segments=1, threshold=0.9), features) == [0, 0, 1, 1, 1, 1]
    assert labels(SimilarityCuts(min_segments=1, threshold=0.95), features) == [0, 0, 1, 1, 2, 2]
    assert labels(SimilarityCuts(min_segments=3, threshold=0.0), features) == [0, 0, 1, 1, 2, 2]
    assert labels(SimilarityCuts(min_segments=1, threshold=0.0), features) == [0] * 6
    assert labels(SimilarityCuts(min_segments=32, threshold=0.0), features) == [0, 1, 2, 3, 4, 5]


def test_equally_alike_neighbours_are_cut_from_the_front() -> None:
    assert labels(SimilarityCuts(min_segments=3, threshold=0.0), torch.ones(5, 2, 3)) == [0, 1, 2, 2, 2]


def test_a_dead_frame_joins_the_one_before_and_is_looked_past() -> None:
    features = frames_at(0, 180, 1, 90)
    keep = torch.ones(4, 2, dtype=torch.bool)
    keep[1] = False
    assert labels(SimilarityCuts(min_segments=1, threshold=0.9), features, keep) == [0, 0, 0, 1]
    assert labels(SimilarityCuts(min_segments=8, threshold=0.9), features, keep) == [0, 0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(
    points=st.integers(1, 14),
    clusters=st.integers(1, 6),
    neighbours=st.integers(1, 8),
    dead=st.integers(0, 3),
    seed=st.integers(0, 999),
)
def test_density_peaks_equal_the_formula_written_out(
    points: int, clusters: int, neighbours: int, dead: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, points + dead, 5)).astype(np.float32)
    group = torch.full((2, points + dead), -1)
    places = [np.sort(rng.permutation(points + dead)[:points]) for _ in range(2)]
    for row in range(2):
        group[row, places[row]] = row
    counts = torch.tensor([min(clusters, points)] * 2)
    found = density_peaks(torch.from_numpy(x), group, counts, neighbours)
    for row in range(2):
        centres, joins = peaks_by_hand(x[row, places[row]], min(clusters, points), neighbours)
        assert found.centre[row].nonzero().flatten().tolist() == places[row][centres].tolist()
        assert found.joins[row, places[row]].tolist() == places[row][joins].tolist()
    assert (found.joins[group < 0] == -1).all()


def test_two_groups_of_a_row_do_not_see_each_other() -> None:
    x = torch.tensor([[[0.0], [0.1], [0.05], [5.0], [5.2], [0.02]]])
    alone = density_peaks(x[:, :3], torch.zeros(1, 3, dtype=torch.int64), torch.tensor([1]), 2)
    both = density_peaks(x, torch.tensor([[0, 0, 0, 1, 1, 1]]), torch.tensor([1, 2]), 2)
    assert torch.equal(both.joins[:, :3], alone.joins)
    assert set(both.joins[0, 3:].tolist()) <= {3, 4, 5}
    assert int(both.centre[0, 3:].sum()) == 2


def test_points_that_are_all_the_same_have_the_first_as_their_peak() -> None:
    found = density_peaks(torch.ones(1, 5, 3), torch.zeros(1, 5, dtype=torch.int64), torch.tensor([2]), 3)
    assert found.centre[0].nonzero().flatten().tolist() == [0, 1]


@settings(max_examples=200, deadline=None)
@given(cluster=st.lists(st.integers(-1, 4), min_size=1, max_size=24))
def test_runs_equal_the_rule_written_out(cluster: list[int]) -> None:
    assert longest_runs(cluster) == runs_by_hand(cluster)


def test_runs_worked_out_by_hand() -> None:
    # 2 appears once and goes; the lone 0 goes; the gap of two joins the longer run of 1
    assert longest_runs([0, 0, 2, 0, 1, 1, 1]) == [0, 0, 1, 1, 1, 1, 1]
    assert longest_runs([0, 1, 2]) == [0, 0, 0]
    assert longest_runs([3, 3, 1, 3, 3]) == [3, 3, 3, 3, 3]


@settings(max_examples=30, deadline=None)
@given(frames=st.integers(1, 16), ratio=st.sampled_from([0.1, 0.25, 0.5, 1.0]), seed=st.integers(0, 99))
def test_segments_from_clusters_equal_the_method_written_out(frames: int, ratio: float, seed: int) -> None:
    features = video_features(frames, 4, 6, seed=seed)
    _, joins = peaks_by_hand(features.numpy().astype(np.float64).mean(axis=1), max(1, int(frames * ratio)), 7)
    assert labels(DpcKnnSegments(segment_ratio=ratio), features) == segments_of(runs_by_hand(joins))


def test_two_scenes_are_two_segments() -> None:
    first, second = torch.zeros(5, 4, 3), torch.full((5, 4, 3), 4.0)
    noise = 0.1 * video_features(10, 4, 3)
    features = torch.cat([first, second]) + noise
    assert labels(DpcKnnSegments(segment_ratio=0.2, neighbours=3), features) == [0] * 5 + [1] * 5


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 3),
    points=st.integers(1, 12),
    width=st.sampled_from([1, 7, 130]),
    far=st.sampled_from([1e-3, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_distances_are_exact_to_float32_and_zero_between_copies(
    rows: int, points: int, width: int, far: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = far * torch.randn(rows, points, width, generator=draw)
    x = torch.cat([x, x, x + far * 1e-3 * torch.randn(x.shape, generator=draw)], dim=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpc_knn, "BLOCK", 3 * points * width)  # a row at once
        found = dpc_knn.distances(x)
    wide = x.double()
    expected = (wide[:, :, None] - wide[:, None]).square().mean(dim=-1).sqrt()
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=4e-6 * far)
    assert (found[:, :points, points : 2 * points].diagonal(dim1=1, dim2=2) == 0).all()


@pytest.mark.parametrize("count", [1, 3, 9])
def test_the_smallest_of_each_row_are_those_of_topk(count: int) -> None:
    values = torch.rand(2, 4, 6).masked_fill(torch.rand(2, 4, 6) > 0.7, torch.inf)
    expected = values.topk(min(count, 6), dim=-1, largest=False, sorted=True).values
    assert torch.equal(dpc_knn.smallest(values, count), expected)
