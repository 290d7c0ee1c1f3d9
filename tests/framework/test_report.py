"""What a policy did, told late: nothing is read from the device before somebody looks."""

import json

import pytest
import torch
from framework.kit import Best, Norm, policy, ramp

from vidsieve.framework.report import Report, Stopwatch


def report(*shapes: tuple[int, int], ratio: float = 0.5) -> Report:
    made = policy(Norm(), Best(), ratio=ratio)
    return Report.combine([made.plan(ramp(*shape)).report for shape in shapes])


def test_one_video() -> None:
    made = report((2, 4))
    assert (made.baseline_tokens, made.kept_tokens, made.attained_ratio, made.requested_ratio) == (8, 4, 0.5, 0.5)
    assert made.per_frame == ((0, 4),)
    assert made.kept == ([(1, 0), (1, 1), (1, 2), (1, 3)],)
    assert made.policy_name == "test"
    assert made.policy_hash == policy(Norm(), Best(), ratio=0.5).hash
    assert made.compress_ms > 0


def test_videos_of_different_shapes_combine() -> None:
    made = report((2, 4), (3, 3), ratio=0.25)
    assert made.baseline_tokens == 17
    assert made.kept_tokens == 2 + 2
    assert made.per_frame == ((0, 2), (0, 0, 2))


def test_a_request_without_a_video_keeps_all_of_nothing() -> None:
    empty = Report(policy_name="x", policy_hash="y", requested_ratio=0.5)
    assert (empty.attained_ratio, empty.kept_tokens, empty.per_frame, empty.compress_ms) == (1.0, 0, (), 0)


def test_everything_fits_into_json() -> None:
    document = json.loads(json.dumps(report((2, 4), (3, 3)).to_dict()))
    assert document["kept_tokens"] == 8
    assert document["attained_ratio"] == pytest.approx(8 / 17)
    assert document["per_frame"] == [[0, 4], [0, 1, 3]]
    assert document["not_run"] == []


def test_nothing_is_read_from_the_device_until_somebody_looks() -> None:
    """A tensor without data stands in for a device: reading it back raises."""
    lazy = Report(
        policy_name="x",
        policy_hash="y",
        requested_ratio=0.5,
        keeps=(torch.ones(2, 3, dtype=torch.bool, device="meta"),),
    )
    both = Report.combine([lazy, lazy])
    assert both.baseline_tokens == 12
    with pytest.raises((RuntimeError, NotImplementedError)):
        _ = both.kept_tokens


def part(tokens: int, **ratios: float | None) -> Report:
    keeps = (torch.ones(1, tokens, dtype=torch.bool),)
    return Report(policy_name="x", policy_hash="y", requested_ratio=0.5, keeps=keeps, **ratios)  # type: ignore[arg-type]


def test_ratios_of_layers_and_caches_combine_by_tokens() -> None:
    made = Report.combine([part(30, layer_ratio=0.2, kv_ratio=0.5), part(10, layer_ratio=0.6, kv_ratio=None)])
    assert made.layer_ratio == pytest.approx(0.3)
    assert made.attained_ratio == made.layer_ratio
    assert made.kv_ratio == pytest.approx(0.625)
    assert Report.combine([part(3), part(4)]).kv_ratio is None


def test_notes_and_stages_not_run_are_told_once() -> None:
    one, other = part(3), part(4)
    one.notes, other.notes = ("a", "b"), ("b", "c")
    one.not_run = other.not_run = ("kv",)
    made = Report.combine([one, other])
    assert (made.notes, made.not_run) == (("a", "b", "c"), ("kv",))


def test_a_stopwatch_measures_the_stretch_it_is_around() -> None:
    with Stopwatch(torch.device("cpu")) as watch:
        sum(range(20_000))
    assert 0 < watch.ms < 10_000
    assert watch.ms == watch.ms
