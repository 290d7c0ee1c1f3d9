"""CDPruner: text relevance by hand, and the set against determinants computed one by one."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies.readbacks import Readbacks
from torch import Tensor

from vidsieve import load_policy
from vidsieve.framework.errors import PolicyError
from vidsieve.framework.plans import Budget, Scores
from vidsieve.framework.policy.file import read_policy
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage
from vidsieve.policies import cdpruner
from vidsieve.policies.cdpruner import CDPruner, relevance
from vidsieve.policies.text_relevance import TextRelevance
from vidsieve.testing import StageContract
from vidsieve.testing.samples import video_features, video_tokens


class TestCDPruner(StageContract):
    def make_stage(self) -> Stage:
        return CDPruner()


class TestCDPrunerFixed(StageContract):
    def make_stage(self) -> Stage:
        return CDPruner(keep_ratio=0.3)


class TestTextRelevanceContract(StageContract):
    def make_stage(self) -> Stage:
        return TextRelevance()


def by_hand(features: Tensor, scores: Tensor, count: int) -> list[int]:
    """Picks that make the determinant of the chosen rows and columns of L largest, in float64."""
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    scores = scores.double()
    quality = (scores - scores.min() + 1e-6) / (scores.max() - scores.min())
    kernel = quality[:, None] * (unit @ unit.T) * quality
    picks: list[int] = []
    while len(picks) < count:
        open_ = [i for i in range(len(unit)) if i not in picks]
        value = [float(torch.linalg.slogdet(kernel[[*picks, i]][:, [*picks, i]]).logabsdet) for i in open_]
        picks.append(open_[value.index(max(value))])
    return sorted(picks)


def chosen(record: VideoTokens) -> list[int]:
    return CDPruner().select_tokens(record).mask.flatten().nonzero().squeeze(1).tolist()


@settings(max_examples=25, deadline=None)
@given(shape=st.tuples(st.integers(1, 4), st.integers(2, 8)), share=st.floats(0.0, 1.0), seed=st.integers(0, 999))
def test_it_is_the_greedy_determinant(shape: tuple[int, int], share: float, seed: int) -> None:
    # more channels than tokens: no direction is spent
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(*shape, 40, generator=draw)
    scores = torch.rand(shape, generator=draw)
    total = shape[0] * shape[1]
    count = max(1, round(share * total))
    record = video_tokens(*shape, 40, features=features, scores=Scores(scores), token_budget=count)
    assert chosen(record) == by_hand(features.flatten(0, 1), scores.flatten(), count)


def test_two_picks_by_hand() -> None:
    # token 1 is all but a copy of token 0; token 2 is orthogonal to it and half as relevant
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.0]]])
    scores = Scores(torch.tensor([[1.0, 0.9, 0.5, 0.0]]))
    record = video_tokens(1, 4, 2, features=features, scores=scores)
    assert chosen(replace(record, token_budget=1)) == [0]
    # gains: 0.81 * 0.0099 for the copy, 0.25 * 1 for the orthogonal one
    assert chosen(replace(record, token_budget=2)) == [0, 2]


def test_where_every_direction_is_spanned_the_choice_starts_anew() -> None:
    # four copies of an orthonormal pair with falling relevance: pairs come out whole, the best first
    features = torch.eye(2)[None, torch.tensor([0, 1] * 4)]
    scores = Scores(torch.tensor([[0.9, 0.8, 0.1, 0.2, 0.7, 0.3, 0.5, 0.6]]))
    record = video_tokens(1, 8, 2, features=features, scores=scores)
    assert chosen(replace(record, token_budget=2)) == [0, 1]
    assert chosen(replace(record, token_budget=4)) == [0, 1, 4, 7]
    assert chosen(replace(record, token_budget=6)) == [0, 1, 4, 5, 6, 7]


def test_more_picks_than_channels_stay_exact_and_spread() -> None:
    features = video_features(6, 16, 4, seed=1)
    record = video_tokens(6, 16, 4, features=features, scores=Scores(torch.ones(6, 16)), token_budget=48)
    assert len(chosen(record)) == 48
    frames = torch.tensor(chosen(record)) // 16
    assert frames.unique().numel() == 6


def test_a_full_frame_does_not_keep_the_others_from_starting_anew() -> None:
    # the second frame holds a direction that its full budget line can no longer give
    features = torch.eye(3)[torch.tensor([[0, 1, 0, 1], [2, 2, 2, 2]])]
    scores = Scores(torch.tensor([[0.5, 0.4, 0.2, 0.3], [0.1, 0.0, 0.0, 0.0]]))
    budget = Budget(share=torch.tensor([3.0, 0.0]))
    record = video_tokens(2, 4, 3, features=features, scores=scores, budget=budget, token_budget=3)
    assert chosen(record) == [0, 1, 3]


def test_a_budget_says_how_many_each_frame_gives() -> None:
    budget = Budget(share=torch.tensor([5.0, 0.0, 1.0]))
    record = video_tokens(3, 8, 40, scores=Scores(torch.rand(3, 8)), budget=budget, token_budget=6)
    assert CDPruner().select_tokens(record).mask.sum(dim=1).tolist() == [5, 0, 1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([1.0, 3.0, 2.0], [0.0, 1.0, 0.5]),
        ([7.0, 7.0], [1.0, 1.0]),
        ([-3e38, 3e38], [0.0, 1.0]),
        ([0.0, float("inf")], [0.0, 1.0]),
    ],
)
def test_relevance_is_scaled_as_the_code_does_and_flat_scores_say_nothing(
    given: list[float], expected: list[float]
) -> None:
    assert relevance(torch.tensor(given)).tolist() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("channels", [4, 40])
def test_a_span_that_is_used_up_is_left_out_with_the_same_result(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = Scores(torch.rand(6, 16, generator=torch.Generator().manual_seed(0)))
    record = video_tokens(6, 16, channels, scores=scores, token_budget=40)
    here = chosen(record)
    monkeypatch.setattr(cdpruner, "on_cpu", lambda values: False)
    assert chosen(record) == here


def test_no_pick_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cdpruner, "on_cpu", lambda values: False)
    found = []
    for count in (2, 14):
        with Readbacks() as seen:
            CDPruner().select_tokens(video_tokens(4, 9, 8, scores=Scores(torch.rand(4, 9)), token_budget=count))
        found.append(seen.count)
    assert found[0] == found[1] > 0


# ------------------------------------------------------------------------------------------------ text relevance


def test_relevance_is_the_mean_cosine_to_the_words() -> None:
    features = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]])
    question = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 5.0]])
    record = video_tokens(1, 3, 2, features=features, question=question)
    found = TextRelevance().score_tokens(record).values[0]
    assert found.tolist() == pytest.approx([1 / 3, 2 / 3, (0.6 + 0.8 + 0.8) / 3])
    assert TextRelevance(favour="unlike").score_tokens(record).values[0].tolist() == pytest.approx((-found).tolist())


@pytest.mark.parametrize("question", [None, torch.zeros(0, 16)])
def test_without_a_question_all_tokens_score_the_same(question: Tensor | None) -> None:
    scores = TextRelevance().score_tokens(video_tokens(question=question)).values
    assert scores.unique().numel() == 1


def test_the_question_changes_what_the_policy_keeps() -> None:
    features, draw = video_features(8, 16, 64), torch.Generator().manual_seed(1)
    policy = load_policy("cdpruner")
    keeps = [policy.plan(features, question=torch.randn(5, 64, generator=draw)).keep for _ in range(2)]
    assert not torch.equal(*keeps)
    plain = policy.plan(features).keep
    assert int(plain.sum()) == int(keeps[0].sum()) == 32
    assert not torch.equal(plain, keeps[0])


def test_relevance_ranks_for_any_selector() -> None:
    stages = "[{use: text-relevance}, {use: top-k}]"
    policy = read_policy(f"{{format: 1, name: r, retention_ratio: 0.25, stages: {stages}}}", "r.yaml")
    features = video_features(4, 4, 8)
    assert policy.plan(features, question=features[2, 1:2]).keep[2, 1]


def test_a_selector_without_scores_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"cdpruner\.select.*reads scores, but no earlier stage makes it"):
        read_policy("{format: 1, name: c, retention_ratio: 0.25, stages: [{use: cdpruner.select}]}", "c.yaml")
