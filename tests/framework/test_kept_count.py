"""How many tokens stay is told from the shape, and is what comes of it whatever the video shows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsieve import load_policy
from vidsieve.framework import registry
from vidsieve.framework.errors import RetentionError
from vidsieve.framework.records import VideoShape
from vidsieve.testing.samples import made_signals, video_features
from vidsieve.testing.stage_contract import hostile_features

CONTENT_DECIDES = {"framefusion", "holitom", "prunevid", "llava-scissor-released", "vidcom2-released"}
BEFORE_THE_LLM = sorted(
    name
    for name in registry.default().policies
    if not (policy := load_policy(name)).is_empty and not policy.layer_stages and not policy.frame_stages
)


def test_those_whose_counts_depend_on_content_are_known() -> None:
    published = {name for name in registry.default().policies if load_policy(name).count_fault}
    assert published == CONTENT_DECIDES


@pytest.mark.parametrize("name", sorted(set(BEFORE_THE_LLM) - CONTENT_DECIDES))
@settings(deadline=None, max_examples=12)
@given(
    frames=st.sampled_from([5, 8, 11]),  # the released DyCoke takes no fewer
    side=st.sampled_from([(2, 3), (4, 4), (5, 6)]),
    ratio=st.sampled_from([0.1, 0.25, 0.5, 1.0]),
)
def test_the_count_told_is_the_count_left(name: str, frames: int, side: tuple[int, int], ratio: float) -> None:
    policy = load_policy(name)
    if policy.retention_ratio is not None:
        policy = policy.with_(retention_ratio=ratio)
    tokens = side[0] * side[1]
    try:
        told = policy.kept_tokens(VideoShape(frames, tokens))
    except RetentionError:
        return
    signals = made_signals(policy.needs() | policy.wants(), frames, tokens)
    for features in hostile_features(video_features(frames, tokens, 16)):
        plan = policy.plan(features, token_grid=(frames, *side), signals=signals, question=torch.ones(3, 16))
        assert len(plan.features) == told


@pytest.mark.parametrize("name", sorted(CONTENT_DECIDES))
def test_no_count_is_told_where_content_decides(name: str) -> None:
    with pytest.raises(RetentionError, match=r"depends on what the video shows|decide counts by what"):
        load_policy(name).kept_tokens(VideoShape(8, 16))


def test_frame_stages_count_in_whole_units() -> None:
    policy = load_policy("uniform-frames", retention_ratio=0.3)
    assert policy.kept_tokens(VideoShape(10, 7)) == 3 * 7


def test_a_stage_in_front_that_leaves_less_than_asked_decides() -> None:
    policy = load_policy("prunevid").with_(without=["static-merge", "dpc-knn.segments"])
    assert policy.count_fault is None
    assert policy.kept_tokens(VideoShape(8, 16)) == 32


def test_the_empty_policy_keeps_all() -> None:
    assert load_policy("none").kept_tokens(VideoShape(8, 16)) == 128
