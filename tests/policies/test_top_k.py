"""top-k against a selection written out in plain Python."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.plans import Budget, Scores, apportion
from vidsieve.policies.top_k import TopK
from vidsieve.policies.uniform_budget import UniformBudget
from vidsieve.testing import video_tokens


def plain_top_k(values: torch.Tensor, alive: torch.Tensor, lines: list[int], counts: dict[int, int]) -> torch.Tensor:
    """Sort the living tokens of each line by score, then index, and take as many as the line has."""
    keep = torch.zeros_like(alive)
    for line, count in counts.items():
        tokens = [(f, t) for f, t in alive.nonzero().tolist() if lines[f] == line]
        for f, t in sorted(tokens, key=lambda ft: (-values[ft].item(), ft))[:count]:
            keep[f, t] = True
    return keep


@st.composite
def cases(draw):
    frames, tokens = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    seed = draw(st.integers(0, 10_000))
    rng = torch.Generator().manual_seed(seed)
    # few distinct values, so that ties are common
    values = torch.randint(0, 4, (frames, tokens), generator=rng).float()
    values[torch.rand(frames, tokens, generator=rng) < 0.1] = torch.inf
    alive = torch.rand(frames, tokens, generator=rng) < 0.8
    alive[0, 0] = True
    total = draw(st.integers(1, int(alive.sum())))
    group = torch.randint(0, 3, (frames,), generator=rng)
    share = torch.rand(frames, generator=rng)
    return values, alive, total, group, share


def record(values: torch.Tensor, alive: torch.Tensor, total: int, budget: Budget | None):
    dead_is_poison = Scores(values.masked_fill(~alive, float("nan")))
    return video_tokens(*values.shape, 4, keep=alive, scores=dead_is_poison, token_budget=total, budget=budget)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_without_a_budget_the_choice_is_global(case) -> None:
    values, alive, total, _, _ = case
    keep = TopK().select_tokens(record(values, alive, total, None)).mask
    assert torch.equal(keep, plain_top_k(values, alive, [0] * len(values), {0: total}))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_a_share_is_met_frame_by_frame_and_the_total_is_exact(case) -> None:
    values, alive, total, _, share = case
    keep = TopK().select_tokens(record(values, alive, total, Budget(share=share))).mask
    counts = apportion(share.double(), total, alive.sum(1)).tolist()
    assert torch.equal(keep, plain_top_k(values, alive, list(range(len(values))), dict(enumerate(counts))))
    assert int(keep.sum()) == total


@settings(max_examples=60, deadline=None)
@given(cases())
def test_frames_of_a_group_share_one_line(case) -> None:
    values, alive, total, group, share = case
    keep = TopK().select_tokens(record(values, alive, total, Budget(share=share, group=group))).mask
    names = sorted(set(group.tolist()))
    line_share = [share.double()[group == name].sum().item() for name in names]
    line_alive = [int(alive[group == name].sum()) for name in names]
    counts = dict(zip(names, apportion(line_share, total, line_alive).tolist(), strict=True))
    assert torch.equal(keep, plain_top_k(values, alive, group.tolist(), counts))
    assert int(keep.sum()) == total


@settings(max_examples=40, deadline=None)
@given(cases())
def test_given_counts_are_taken_as_they_are(case) -> None:
    values, alive, total, _, _ = case
    counts = torch.arange(len(values)) % 4
    keep = TopK().select_tokens(record(values, alive, total, Budget(counts=counts))).mask
    assert torch.equal(keep, plain_top_k(values, alive, list(range(len(values))), dict(enumerate(counts.tolist()))))


def test_infinite_scores_are_kept_first_and_ties_go_to_the_lower_index() -> None:
    values = torch.tensor([[1.0, torch.inf, 1.0], [1.0, 2.0, 1.0]])
    keep = TopK().select_tokens(record(values, torch.ones(2, 3, dtype=torch.bool), 4, None)).mask
    assert keep.tolist() == [[True, True, True], [False, True, False]]


def test_keep_ratio_counts_what_is_offered() -> None:
    alive = torch.ones(2, 10, dtype=torch.bool)
    alive[1, 5:] = False
    shown = video_tokens(2, 10, 4, keep=alive, scores=Scores(torch.rand(2, 10)))
    assert int(TopK(keep_ratio=0.2).select_tokens(shown).mask.sum()) == 3


def test_a_count_that_nobody_decides_is_an_error() -> None:
    with pytest.raises(PolicyError, match="set keep_ratio"):
        TopK().select_tokens(video_tokens(2, 4, 4, scores=Scores(torch.rand(2, 4))))


def test_uniform_budget_gives_living_frames_the_same() -> None:
    keep = torch.ones(3, 4, dtype=torch.bool)
    keep[1] = False
    assert UniformBudget().budget_frames(video_tokens(3, 4, 4, keep=keep)).share.tolist() == [1.0, 0.0, 1.0]
