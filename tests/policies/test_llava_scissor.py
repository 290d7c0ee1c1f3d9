"""LLaVA-Scissor: components by similarity in frames and over the video, at a threshold or to an exact count."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsieve import load_policy
from vidsieve.framework.errors import PolicyError
from vidsieve.framework.plans import melt, tokens_to_keep
from vidsieve.framework.stage import Stage
from vidsieve.policies import llava_scissor
from vidsieve.policies.llava_scissor import ScissorMerge, components, forest, pairs_above, strongest_links
from vidsieve.testing import StageContract, video_tokens
from vidsieve.testing.samples import video_features


class TestScissor(StageContract):
    def make_stage(self) -> Stage:
        return ScissorMerge()


class TestScissorFixed(StageContract):
    def make_stage(self) -> Stage:
        return ScissorMerge(threshold=0.8)


def cosines(x: np.ndarray) -> np.ndarray:
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return unit @ unit.T


def groups_by_hand(similarity: np.ndarray, threshold: float) -> list[list[int]]:
    """Components by walking the graph, in order of their lowest point."""
    left, groups = set(range(len(similarity))), []
    while left:
        group, border = set(), [min(left)]
        while border:
            point = border.pop()
            group.add(point)
            border += [p for p in left - group if similarity[point, p] > threshold and p not in border]
        left -= group
        groups.append(sorted(group))
    return groups


@settings(max_examples=60, deadline=None)
@given(
    points=st.integers(1, 12),
    levels=st.sampled_from([2, 5, 1000]),
    threshold=st.floats(-0.1, 1.1),
    dead=st.integers(0, 3),
    seed=st.integers(0, 999),
)
def test_the_strongest_links_hold_the_components_of_every_threshold(
    points: int, levels: int, threshold: float, dead: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, levels, (2, points + dead, points + dead)) / levels  # few levels: many ties
    similarity = np.maximum(drawn, drawn.transpose(0, 2, 1))
    places = [np.sort(rng.permutation(points + dead)[:points]) for _ in range(2)]
    alive = torch.zeros(2, points + dead, dtype=torch.bool)
    for row in range(2):
        alive[row, places[row]] = True
    links = strongest_links(torch.from_numpy(similarity).float(), alive)
    assert len(links.one) == 2 * (points - 1)
    assert (links.strength.diff() <= 0).all()
    near = links.strength > np.float32(threshold)
    label = components(torch.arange(alive.numel()), links.one[near], links.other[near]).view(alive.shape)
    for row in range(2):
        inside = similarity[row][np.ix_(places[row], places[row])].astype(np.float32)
        first = row * (points + dead)
        for group in groups_by_hand(inside, np.float32(threshold)):
            assert label[row, places[row][group]].unique().tolist() == [first + places[row][group[0]]]


@settings(max_examples=40, deadline=None)
@given(
    points=st.integers(1, 30),
    alike=st.booleans(),
    threshold=st.floats(-1.0, 1.0),
    host=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_forest_of_listed_pairs_is_the_strong_part_of_the_forest_of_all(
    points: int, alike: bool, threshold: float, host: bool, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    # unit vectors of one channel and axis: every product is exact, and most tie
    axes = torch.nn.functional.one_hot(torch.randint(5, (points,), generator=draw), 5).float()
    direction = axes if alike else torch.nn.functional.normalize(torch.randn(points, 5, generator=draw), dim=-1)
    similarity = direction @ direction.T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llava_scissor, "ROWS", 7)
        patch.setattr(llava_scissor, "on_cpu", lambda values: host)
        pairs = pairs_above(direction, threshold)
    assert torch.stack([pairs.one, pairs.other], 1).tolist() == [
        [i, j] for i in range(points) for j in range(i + 1, points) if similarity[i, j] > threshold
    ]
    every = strongest_links(similarity[None], torch.ones(1, points, dtype=torch.bool))
    strong = forest(points, pairs)
    count = int((every.strength > threshold).sum())
    assert (strong.one.tolist(), strong.other.tolist()) == (every.one[:count].tolist(), every.other[:count].tolist())


def test_components_of_a_long_chain_in_any_order() -> None:
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert (components(torch.arange(200), order[:-1], order[1:]) == 0).all()


def scissor_by_hand(x: np.ndarray, threshold: float) -> dict[int, np.ndarray]:
    """Frame after frame, then over the means, then every token to the most similar mean: flat place -> feature."""
    frames, tokens, width = x.shape
    x = x.astype(np.float64)
    means, members = [], []
    for frame in range(frames):
        for group in groups_by_hand(cosines(x[frame]), threshold):
            means.append(x[frame, group].mean(axis=0))
            members.append([frame * tokens + token for token in group])
    second = groups_by_hand(cosines(np.stack(means)), threshold)
    z = np.stack([np.mean([means[i] for i in group], axis=0) for group in second])
    inside = [sorted(place for i in group for place in members[i]) for group in second]
    flat = x.reshape(-1, width)
    unit = flat / np.linalg.norm(flat, axis=-1, keepdims=True)
    similarity = unit @ (z / np.linalg.norm(z, axis=-1, keepdims=True)).T
    place = [max(group, key=lambda p: similarity[p, i]) for i, group in enumerate(inside)]
    joins = similarity.argmax(axis=1)
    joins[place] = np.arange(len(place))
    return {p: (z[i] + flat[joins == i].sum(axis=0)) / (1 + (joins == i).sum()) for i, p in enumerate(place)}


@settings(max_examples=40, deadline=None)
@given(
    frames=st.integers(1, 5),
    tokens=st.integers(1, 10),
    threshold=st.sampled_from([0.5, 0.6, 0.7, 0.8, 0.9, 0.95]),
    width=st.sampled_from([3, 8]),
    seed=st.integers(0, 99),
)
def test_the_merge_equals_the_released_rules_written_out(
    frames: int, tokens: int, threshold: float, width: int, seed: int
) -> None:
    features = video_features(frames, tokens, width, seed=seed)
    record = video_tokens(frames, tokens, width, features=features)
    plan = ScissorMerge(threshold=threshold).merge_tokens(record)
    step, weight = melt(plan, record.weight.flatten())
    expected = scissor_by_hand(features.numpy(), threshold)
    assert step.targets.nonzero().flatten().tolist() == sorted(expected)
    rows = step.apply(features.flatten(0, 1))[step.targets]
    assert np.allclose(rows.numpy(), np.stack([expected[place] for place in sorted(expected)]), atol=1e-5)
    assert weight[step.targets].sum() == pytest.approx(frames * tokens)


@pytest.mark.filterwarnings("ignore:.*removed none of")
@settings(max_examples=25, deadline=None)
@given(
    frames=st.integers(1, 8),
    tokens=st.integers(1, 16),
    ratio=st.floats(0.02, 1.0),
    still=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_ratio_is_exact_also_where_everything_ties(
    frames: int, tokens: int, ratio: float, still: bool, seed: int
) -> None:
    features = video_features(frames, tokens, 6, seed=seed)
    features = features[:1, :1].expand_as(features) if still else features
    plan = load_policy("llava-scissor", retention_ratio=ratio).plan(features)
    assert int(plan.keep.sum()) == tokens_to_keep(frames * tokens, ratio)
    assert float(plan.weight.sum()) == pytest.approx(frames * tokens)


def test_a_count_is_what_a_threshold_leaves_where_one_leaves_it() -> None:
    features = video_features(6, 12, 8, seed=4)
    record = video_tokens(6, 12, 8, features=features)
    fixed = ScissorMerge(threshold=0.9).merge_tokens(record)
    count = len(fixed.target.unique())
    asked = ScissorMerge().merge_tokens(replace(record, token_budget=count))
    assert 6 < count < 72
    assert torch.equal(asked.target, fixed.target)


def test_dead_tokens_join_nothing_and_count_as_nothing() -> None:
    features = video_features(3, 6, 8)
    keep = torch.ones(3, 6, dtype=torch.bool)
    keep[1], keep[2, 3:] = False, False
    short = ScissorMerge(threshold=0.8).merge_tokens(video_tokens(1, 6, 8, features=features[:1]))
    plan = ScissorMerge(threshold=0.8).merge_tokens(replace(video_tokens(3, 6, 8, features=features), keep=keep))
    assert keep.flatten()[plan.source].all() and keep.flatten()[plan.target].all()
    assert len(plan.target.unique()) >= len(short.target.unique())


def test_a_threshold_that_nobody_decides_is_an_error() -> None:
    with pytest.raises(PolicyError, match="set threshold"):
        ScissorMerge().merge_tokens(video_tokens(2, 4, 4))
