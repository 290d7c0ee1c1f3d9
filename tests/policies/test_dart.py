"""DART: pivots, rounds and counts worked out by hand and against a slow direct computation."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vidsieve import load_policy
from vidsieve.framework.plans import Budget
from vidsieve.framework.stage import Stage
from vidsieve.policies.dart import DART
from vidsieve.testing import StageContract, rank_layer


class TestDART(StageContract):
    def make_stage(self) -> Stage:
        return DART()


def nothing(visual: int) -> Tensor:
    """DART reads no attention."""
    return torch.full((1, 1, visual), float("nan"))


def case(seed: int, visual: int = 40, words: int = 6) -> dict:
    draw = torch.Generator().manual_seed(seed)
    keys = (torch.randn(2, visual, 5, generator=draw), torch.randn(2, words, 5, generator=draw))
    hidden, text = (torch.randn(count, 12, generator=draw) for count in (visual, words))
    return {"keys": keys, "hidden": hidden, "text": text}


def by_hand(shown: dict, visual_pivots: int, text_pivots: int, count: int) -> list[int]:
    """One pivot after the other, one cosine after the other."""
    norms = [[float(keys[:, i].abs().sum()) for i in range(keys.shape[1])] for keys in shown["keys"]]
    best = [sorted(range(len(norm)), key=lambda i, norm=norm: (-norm[i], i)) for norm in norms]
    images, words = sorted(best[0][: min(visual_pivots, count)]), sorted(best[1][:text_pivots])
    pivots = [shown["hidden"][i] for i in images] + [shown["text"][i] for i in words]
    taken, left = list(images), count - len(images)
    for number, pivot in enumerate(pivots):
        turn = left // len(pivots) + (number < left % len(pivots))
        free = [i for i in range(len(shown["hidden"])) if i not in taken]
        like = {i: float(cosine_similarity(pivot, shown["hidden"][i], dim=0)) for i in free}
        taken += sorted(free, key=lambda i: (like[i], i))[:turn]
    return sorted(taken)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 17, 40])
@pytest.mark.parametrize("pivots", [(4, 4), (1, 0), (2, 9)])
def test_it_is_the_slow_rule(count: int, pivots: tuple[int, int]) -> None:
    for seed in range(4):
        shown = case(seed)
        stage = DART(visual_pivots=pivots[0], text_pivots=pivots[1])
        assert rank_layer(stage, nothing(40), count=count, **shown).tolist() == by_hand(shown, *pivots, count)


def test_copies_of_the_pivot_are_dropped_first() -> None:
    hidden = torch.tensor([[1.0, 0.0], [2.0, 0.01], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    keys = (torch.tensor([[[9.0], [-8.0], [1.0], [1.0], [1.0]]]), torch.zeros(1, 0, 1))
    stage = DART(visual_pivots=1, text_pivots=4)
    assert rank_layer(stage, nothing(5), count=1, hidden=hidden, keys=keys).tolist() == [0]
    assert rank_layer(stage, nothing(5), count=2, hidden=hidden, keys=keys).tolist() == [0, 2]
    assert rank_layer(stage, nothing(5), count=3, hidden=hidden, keys=keys).tolist() == [0, 2, 4]


def test_words_choose_and_the_last_norm_weighs_the_channels() -> None:
    shown = case(1) | {"final_norm": lambda states: states * torch.tensor([9.0, *[0.0] * 10, 1.0])}
    found = rank_layer(DART(), nothing(40), count=12, **shown).tolist()
    normed = case(1)
    normed["hidden"], normed["text"] = (shown["final_norm"](normed[name]) for name in ("hidden", "text"))
    assert found == by_hand(normed, 4, 4, 12) != by_hand(case(1), 4, 4, 12)
    assert by_hand(case(1), 4, 4, 20) != by_hand(case(1), 4, 0, 20)


def test_a_frame_budget_shares_the_count() -> None:
    shown = case(2)
    frame = torch.arange(40) // 10
    budget = Budget(share=torch.tensor([1.0, 6.0, 1.0, 4.0]))
    found = rank_layer(DART(), nothing(40), count=12, frame=frame, budget=budget, **shown)
    assert torch.bincount(frame[found], minlength=4).tolist() == [1, 6, 1, 4]
    # a frame that gives fewer than were taken of it keeps some of those
    plain = rank_layer(DART(), nothing(40), count=12, **shown)
    of_first = {int(i) for i in found if frame[i] == 0}
    assert of_first <= {int(i) for i in plain} or not (frame[plain] == 0).any()


@pytest.mark.parametrize(("offered", "ratio", "left"), [(576, 0.222, 4 + 8 * 15), (100, 0.0, 4), (10, 1.0, 10)])
def test_released_counts_are_whole_rounds_of_pivots(offered: int, ratio: float, left: int) -> None:
    assert DART(keep_ratio=ratio, counting="released").leaves(offered, 32) == (left,)


def test_exact_counts_are_the_share() -> None:
    assert DART(keep_ratio=0.29).leaves(100, 32) == (29,)
    assert load_policy("dart").stages[0].stage.layers(32) == (1,)
