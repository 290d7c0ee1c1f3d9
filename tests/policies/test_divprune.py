"""DivPrune: the max-min rule worked by hand and against a slow direct computation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies.readbacks import Readbacks
from torch import Tensor

from vidsieve import load_policy
from vidsieve.framework.plans import Budget
from vidsieve.framework.policy.file import read_policy
from vidsieve.framework.stage import Stage
from vidsieve.policies import divprune
from vidsieve.policies.divprune import DivPrune
from vidsieve.policies.shared import greedy
from vidsieve.testing import StageContract
from vidsieve.testing.samples import video_features, video_tokens


class TestDivPrune(StageContract):
    def make_stage(self) -> Stage:
        return DivPrune()


class TestDivPruneFixed(StageContract):
    def make_stage(self) -> Stage:
        return DivPrune(keep_ratio=0.3)


def by_hand(features: Tensor, count: int, line: Tensor | None = None, room: list[int] | None = None) -> list[int]:
    """Picks by the paper's rule, distances in float64, one pair at a time."""
    rows = [row / row.norm() for row in features.double()]
    distance = [[1 - float(one @ other) for other in rows] for one in rows]
    everyone, picks = range(len(rows)), []
    left = list(room) if room is not None else [count]
    lines = [0] * len(rows) if line is None else line.tolist()
    while len(picks) < count:
        against = {i: picks or [j for j in everyone if j != i] for i in everyone}
        open_ = [i for i in everyone if i not in picks and left[lines[i]] > 0]
        value = {i: min((distance[i][j] for j in against[i]), default=0.0) for i in open_}
        picks.append(max(open_, key=lambda i: (value[i], -i)))
        left[lines[picks[-1]]] -= 1
    return sorted(picks)


def chosen(stage: DivPrune, features: Tensor, **fields) -> list[int]:
    frames, tokens, dim = features.shape
    record = video_tokens(frames, tokens, dim, features=features, **fields)
    return stage.select_tokens(record).mask.flatten().nonzero().squeeze(1).tolist()


def test_the_rule_by_hand_on_a_circle() -> None:
    degrees = torch.tensor([0.0, 10.0, 20.0, 90.0, 180.0])
    features = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=1)[None]
    # the nearest to 180° is 90° away, the nearest to 90° only 70°; then 0° is farthest, then 90°, and 20° before 10°
    assert chosen(DivPrune(), features, token_budget=1) == [4]
    assert chosen(DivPrune(), features, token_budget=2) == [0, 4]
    assert chosen(DivPrune(), features, token_budget=3) == [0, 3, 4]
    assert chosen(DivPrune(), features, token_budget=4) == [0, 2, 3, 4]


@settings(max_examples=25, deadline=None)
@given(shape=st.tuples(st.integers(1, 5), st.integers(1, 8)), share=st.floats(0.0, 1.0), seed=st.integers(0, 999))
def test_it_is_the_slow_rule(shape: tuple[int, int], share: float, seed: int) -> None:
    features = video_features(*shape, 6, seed=seed)
    total = features.shape[0] * features.shape[1]
    count = max(1, round(share * total))
    assert chosen(DivPrune(), features, token_budget=count) == by_hand(features.flatten(0, 1), count)


def test_a_budget_says_how_many_each_frame_gives_and_distances_stay_global() -> None:
    features = video_features(4, 6, 5, seed=3)
    room = [5, 1, 4, 0]
    budget = Budget(share=torch.tensor(room).float())
    line = torch.arange(4).repeat_interleave(6)
    picks = chosen(DivPrune(), features, token_budget=10, budget=budget)
    assert picks == by_hand(features.flatten(0, 1), 10, line, room)
    assert torch.bincount(torch.tensor(picks) // 6, minlength=4).tolist() == room
    assert picks != chosen(DivPrune(), features, token_budget=10)


def test_frames_of_a_group_share_their_room() -> None:
    features = video_features(4, 6, 5, seed=4)
    budget = Budget(share=torch.tensor([2.0, 2.0, 1.0, 1.0]), group=torch.tensor([7, 7, 2, 2]))
    picks = torch.tensor(chosen(DivPrune(), features, token_budget=9, budget=budget))
    assert torch.bincount(picks // 12, minlength=2).tolist() == [6, 3]


def test_copies_come_last_and_in_order() -> None:
    features = torch.eye(4)[None, torch.tensor([0, 1, 1, 2, 2, 3])]
    assert chosen(DivPrune(), features, token_budget=4) == [0, 1, 3, 5]
    assert chosen(DivPrune(), features, token_budget=5) == [0, 1, 2, 3, 5]


def test_tokens_of_length_zero_do_no_harm() -> None:
    features = torch.cat([torch.zeros(1, 2, 3), torch.eye(3)[None]], dim=1)
    assert len(chosen(DivPrune(), features, token_budget=5)) == 5
    assert len(chosen(DivPrune(), features, token_budget=3)) == 3


def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on work may not depend on what was found."""
    monkeypatch.setattr(divprune, "on_cpu", lambda values: False)


def test_many_tokens_are_compared_row_by_row_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_device(monkeypatch)
    features = video_features(6, 9, 8, seed=5)
    whole = chosen(DivPrune(), features, token_budget=20)
    monkeypatch.setattr(greedy, "WHOLE", 10)
    assert chosen(DivPrune(), features, token_budget=20) == whole


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 9)),
    share=st.floats(0.0, 1.0),
    block=st.sampled_from([1, 2, 5, 128]),
    budgeted=st.booleans(),
    levels=st.sampled_from([1, 2, 1000]),
    seed=st.integers(0, 999),
)
def test_blocks_on_the_cpu_pick_what_one_by_one_picks_ties_too(
    shape: tuple[int, int], share: float, block: int, budgeted: bool, levels: int, seed: int
) -> None:
    # of few levels all products are exact and many tie: the lower index must go first wherever a block ends
    draw = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.one_hot(torch.randint(levels, shape, generator=draw) % 7, 8).float()
    features = video_features(*shape, 8, seed=seed) if levels == 1000 else features
    budget = Budget(share=torch.rand(shape[0], generator=draw)) if budgeted else None
    count = max(1, round(share * shape[0] * shape[1]))
    with pytest.MonkeyPatch.context() as patch:
        as_on_a_device(patch)
        expected = chosen(DivPrune(), features, token_budget=count, budget=budget)
        patch.undo()
        patch.setattr(greedy, "BLOCK", block)
        patch.setattr(divprune, "FEW", block)
        assert chosen(DivPrune(), features, token_budget=count, budget=budget) == expected


@pytest.mark.parametrize("budget", [None, Budget(share=torch.ones(4))])
def test_no_pick_waits_for_the_device(budget: Budget | None, monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_device(monkeypatch)
    found = []
    for count in (2, 14):
        with Readbacks() as seen:
            DivPrune().select_tokens(video_tokens(4, 9, 8, token_budget=count, budget=budget))
        found.append(seen.count)
    assert found[0] == found[1] > 0


def test_a_frame_budget_steers_the_policy_by_yaml_alone() -> None:
    stages = "[{use: vidcom2.frame-budget}, {use: divprune.select}]"
    text = f"{{format: 1, name: steered, summary: s, retention_ratio: 0.25, stages: {stages}}}"
    features = video_features(8, 16, 32)
    steered, plain = read_policy(text, "steered.yaml").plan(features), load_policy("divprune").plan(features)
    assert int(steered.keep.sum()) == int(plain.keep.sum()) == 32
    assert steered.keep.sum(dim=1).argmax() == 4  # the frame unlike the others
    assert steered.keep.sum(dim=1).tolist() != plain.keep.sum(dim=1).tolist()
