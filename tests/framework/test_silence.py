"""A policy that should have removed something and removed nothing says so."""

import warnings
from typing import Any

import pytest
import torch
from framework.kit import Best, Norm, answering, policy, ramp

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.plans import Keep, Merge
from vidsieve.framework.stage import Stage

KEEP_ALL = {"select_tokens": lambda tokens: Keep(tokens.keep)}


def idle(**extra: Any) -> tuple[str, Stage]:
    return "idle", answering(**KEEP_ALL, **extra)


def test_a_static_count_that_removes_nothing_is_an_error() -> None:
    with pytest.raises(
        PolicyError, match="stage 'idle' should have left 4 of 8 visual tokens, but nothing was removed"
    ):
        policy(idle(), ratio=0.5, exact=False).plan(ramp(2, 4))


def test_a_static_setting_that_removes_nothing_is_an_error() -> None:
    """The last stage may keep what it likes; the first one promised half and kept all."""
    with pytest.raises(PolicyError, match="stage 'idle' should have left 4 of 8"):
        policy(idle(attainable=(0.5, 0.5)), ("last", answering(**KEEP_ALL, data_dependent=True))).plan(ramp(2, 4))


def test_content_that_removes_nothing_is_a_warning_and_a_note() -> None:
    with pytest.warns(UserWarning, match="removed none of 8 visual tokens"):
        report = policy(idle(data_dependent=True)).plan(ramp(2, 4)).report
    assert report.notes == ("policy 'test': removed none of 8 visual tokens.",)


def test_a_ratio_does_not_excuse_content_from_the_warning() -> None:
    with pytest.warns(UserWarning, match="removed none"):
        policy(idle(data_dependent=True), ratio=0.5, exact=False).plan(ramp(2, 4))


def test_a_merge_of_every_token_into_itself_is_no_merge() -> None:
    alone = answering(merge_tokens=Merge(torch.arange(8), torch.arange(8)))
    with pytest.raises(PolicyError, match="nothing was removed"):
        policy(("alone", alone), ratio=0.5).plan(ramp(2, 4))


@pytest.mark.parametrize("stages", [(), (Norm(), Best())], ids=["empty", "whole"])
def test_nothing_to_remove_is_no_fault(stages: tuple[Stage, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert policy(*stages, ratio=1.0).plan(ramp(2, 4)).report.notes == ()


def test_a_video_too_small_to_lose_a_token_is_no_fault() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert policy(Norm(), Best(), ratio=0.25).plan(ramp(1, 1)).keep.all()


def test_a_fixed_ratio_of_one_is_no_fault() -> None:
    assert policy(Norm(), Best(keep_ratio=1.0)).plan(ramp(2, 4)).keep.all()


def test_stages_of_other_steps_are_listed_as_not_run() -> None:
    layer = ("layer", answering(prune_layer=None, layers=(2,)))
    kv = ("kv", answering(prune_kv=None, layers=(1,)))
    frames = ("frames", answering(reduce_frames=None))
    both = ("both", answering(score_tokens=Norm().score_tokens, prune_layer=None, layers=(1,), reads=("scores",)))
    report = policy(frames, both, layer, kv, ratio=0.5).plan(ramp(2, 4)).report
    assert report.not_run == ("frames", "both", "layer", "kv")
    assert report.kept_tokens == 8
