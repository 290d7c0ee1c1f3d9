"""Mending rounding: by score, a token a frame at most, never a protected one, ties to the lower index."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vidsieve.framework.errors import PlanError
from vidsieve.framework.planning.pipeline import reconcile
from vidsieve.framework.plans import Keep


def mask(*rows: str) -> Tensor:
    """Rows of '#' (kept) and '.' (dropped)."""
    return torch.tensor([[place == "#" for place in row] for row in rows])


ALIVE = mask("####", "####")
SCORES = torch.tensor([[9.0, 3.0, 2.0, 8.0], [7.0, 1.0, 6.0, 5.0]])


@pytest.mark.parametrize(
    ("kept", "budget", "scores", "expected"),
    [
        (mask("##..", "##.."), 4, SCORES, mask("##..", "##..")),
        (mask("##..", "##.."), 5, SCORES, mask("##.#", "##..")),  # 8 is the best that was dropped
        (mask("##..", "##.."), 6, SCORES, mask("##.#", "###.")),  # then the best of the other frame
        (mask("##..", "##.."), 3, SCORES, mask("##..", "#...")),  # 1 is the worst that was kept
        (mask("##..", "##.."), 2, SCORES, mask("#...", "#...")),
        (mask("##..", "##.."), 5, None, mask("###.", "##..")),  # without scores the first dropped comes back
        (mask("##..", "##.."), 3, None, mask("##..", "#...")),  # and the last kept goes
        (mask("##..", "##.."), 5, torch.zeros(2, 4), mask("###.", "##..")),
        (mask("##..", "##.."), 3, torch.zeros(2, 4), mask("##..", "#...")),
        (mask("##..", "##.."), 2, torch.zeros(2, 4), mask("#...", "#...")),
        (mask("####", "####"), 7, SCORES.clone().fill_(torch.inf), mask("####", "###.")),
        (mask("####", "...."), 3, SCORES.clone().fill_(torch.inf), mask("###.", "....")),
        (mask("####", "...."), 5, SCORES, mask("####", "#...")),
        (mask("....", "####"), 3, SCORES, mask("....", "#.##")),
    ],
)
def test_the_right_token_moves(kept: Tensor, budget: int, scores: Tensor | None, expected: Tensor) -> None:
    assert torch.equal(reconcile("here", Keep(kept, scores=scores), ALIVE, budget), expected)


def test_protected_tokens_stay_even_if_they_score_worst() -> None:
    plan = Keep(mask("##..", "##.."), scores=SCORES, protected=mask("....", "##.."))
    assert torch.equal(reconcile("here", plan, ALIVE, 3), mask("#...", "##.."))
    with pytest.raises(PlanError, match="no more"):
        reconcile("here", plan, ALIVE, 2)


def test_dropped_tokens_of_earlier_stages_do_not_come_back() -> None:
    alive = mask("##..", "###.")
    plan = Keep(mask("##..", "##.."), scores=SCORES)
    assert torch.equal(reconcile("here", plan, alive, 5), mask("##..", "###."))
    with pytest.raises(PlanError, match="no more"):
        reconcile("here", plan, alive, 6)


@pytest.mark.parametrize("budget", [1, 7])
def test_more_than_one_token_a_frame_is_an_error(budget: int) -> None:
    with pytest.raises(PlanError, match=f"here: kept 4 visual tokens where token_budget asks for {budget}"):
        reconcile("here", Keep(mask("##..", "##.."), scores=SCORES), ALIVE, budget)


def test_what_a_dead_token_scores_does_not_matter() -> None:
    scores = SCORES.clone()
    scores[0, 2:] = torch.nan
    plan = Keep(mask("##..", "##.."), scores=scores)
    assert torch.equal(reconcile("here", plan, mask("##..", "####"), 5), mask("##..", "###."))


def test_the_plan_itself_is_not_changed() -> None:
    plan = Keep(mask("##..", "##.."), scores=SCORES)
    reconcile("here", plan, ALIVE, 5)
    assert torch.equal(plan.mask, mask("##..", "##.."))


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**30), st.integers(-6, 6))
def test_the_budget_is_met_or_refused_and_no_frame_moves_by_two(
    frames: int, tokens: int, seed: int, missing: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    alive = torch.rand(frames, tokens, generator=rng) < 0.8
    kept = alive & (torch.rand(frames, tokens, generator=rng) < 0.6)
    scores = torch.randint(0, 3, (frames, tokens), generator=rng).float()
    movable = (alive & ~kept) if missing > 0 else kept
    plan, budget = Keep(kept, scores=scores), int(kept.sum()) + missing
    if abs(missing) > int(movable.any(dim=1).sum()):
        with pytest.raises(PlanError):
            reconcile("here", plan, alive, budget)
        return
    mended = reconcile("here", plan, alive, budget)
    assert int(mended.sum()) == budget
    assert not (mended & ~alive).any()
    assert (mended ^ kept).sum(dim=1).max() <= 1
