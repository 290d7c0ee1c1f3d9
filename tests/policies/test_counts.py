"""What a ratio means: exact totals on any shape, or an error that gives the reach."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsieve import load_policy
from vidsieve.framework.errors import RetentionError
from vidsieve.framework.plans import tokens_to_keep
from vidsieve.framework.records import VideoShape
from vidsieve.testing.samples import video_features

shapes = st.tuples(st.integers(1, 13), st.integers(1, 40))
ratios = st.floats(0.02, 1.0)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["vidcom2", "random", "uniform-frames"]), shape=shapes, ratio=ratios, seed=st.integers(0, 99)
)
def test_totals_are_exact(name: str, shape: tuple[int, int], ratio: float, seed: int) -> None:
    frames, tokens = shape
    plan = load_policy(name, retention_ratio=ratio).plan(video_features(frames, tokens, 6, seed=seed))
    assert int(plan.keep.sum()) == tokens_to_keep(frames * tokens, ratio)


@settings(max_examples=80, deadline=None)
@given(shape=shapes, ratio=ratios, seed=st.integers(0, 99))
def test_dycoke_totals_are_exact_wherever_the_method_reaches(shape: tuple[int, int], ratio: float, seed: int) -> None:
    frames, tokens = shape
    wanted = tokens_to_keep(frames * tokens, ratio)
    anchors = -(-frames // 4) * tokens
    policy = load_policy("dycoke", retention_ratio=ratio)
    features = video_features(frames, tokens, 6, seed=seed)
    if wanted < anchors:
        with pytest.raises(RetentionError, match="reaches"):
            policy.plan(features)
    else:
        keep = policy.plan(features).keep
        assert int(keep.sum()) == wanted
        assert keep[::4].all()


@settings(max_examples=60, deadline=None)
@given(shape=st.tuples(st.integers(5, 40), st.integers(1, 200)), tenths=st.integers(0, 10))
def test_released_dycoke_counts_are_those_of_its_formula(shape: tuple[int, int], tenths: int) -> None:
    frames, tokens = shape
    keep = int((1 - tenths / 10) * tokens)
    windows = len(range(0, frames - 4, 4))
    expected = frames // 2 * (tokens + keep) - windows * (tokens - keep)
    stage = load_policy("dycoke-released", settings={"dycoke.temporal-merge.drop_ratio": tenths / 10}).stages[0].stage
    low, high = stage.attainable(VideoShape(frames, tokens))
    assert low == high
    assert Fraction(expected, frames * tokens) == Fraction(round(low * frames * tokens), frames * tokens)


def test_the_paper_table_of_dycoke_counts() -> None:
    # 196 tokens a frame, K = 0.7: 58 of a compared frame; worked by hand from the windows
    expected = {5: 370, 6: 624, 7: 624, 8: 878, 9: 740, 16: 1618, 32: 3098, 64: 6058}
    policy = load_policy("dycoke-released")
    for frames, total in expected.items():
        assert int(policy.plan(video_features(frames, 196, 4)).keep.sum()) == total


@pytest.mark.parametrize(("tokens", "drop", "kept"), [(100, 0.9, 9), (10, 0.9, 0), (10, 0.8, 1), (196, 0.7, 58)])
def test_dycoke_truncates_the_float_product_as_its_code_does(tokens: int, drop: float, kept: int) -> None:
    policy = load_policy("dycoke", settings={"dycoke.temporal-merge.drop_ratio": drop})
    counts = policy.plan(video_features(4, tokens, 4)).keep.sum(dim=1).tolist()
    assert counts == [tokens, kept, kept, kept]


@pytest.mark.parametrize("name", ["vidcom2", "random", "uniform-frames", "dycoke"])
def test_a_ratio_of_one_keeps_everything(name: str) -> None:
    assert load_policy(name, retention_ratio=1.0).plan(video_features(7, 9, 8)).keep.all()


def test_compositions_of_any_two_reducers_hit_the_total() -> None:
    from vidsieve.framework.policy.file import read_policy

    first = {
        "drop": "{use: dycoke.temporal-merge, as: one, drop_ratio: 0.3}",
        "frames": "{use: uniform-frames, as: one, keep_ratio: 0.8}",
    }
    last = {
        "top": "{use: vidcom2.frame-budget}, {use: vidcom2.token-score}, {use: top-k}",
        "even": "{use: uniform-budget}, {use: random}, {use: top-k}",
        "merge": "{use: dycoke.temporal-merge}",
        "frames": "{use: uniform-frames}",
    }
    for one in first.values():
        for other in last.values():
            text = f"{{format: 1, name: two, retention_ratio: 0.6, stages: [{one}, {other}]}}"
            plan = read_policy(text, "two.yaml").plan(video_features(9, 16, 8))
            assert int(plan.keep.sum()) == tokens_to_keep(9 * 16, 0.6), text


def test_bfloat16_features_give_the_plan_of_their_float32_values() -> None:
    features = video_features(8, 36, 32).bfloat16()
    for name in ("vidcom2", "dycoke", "vidcom2-released", "dycoke-released"):
        policy = load_policy(name)
        assert torch.equal(policy.plan(features).keep, policy.plan(features.float()).keep), name
