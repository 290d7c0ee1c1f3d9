"""What KV stages are shown where layer stages have shortened the prompt: token numbers, whatever a cache's order."""

import torch

from vidsieve.adapters.decoder.cached_columns import CachedColumns
from vidsieve.adapters.decoder.kv_groups import groups_of
from vidsieve.adapters.decoder.kv_prompt import KVPrompt

REAL = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]]).bool()
VISUAL = torch.tensor([[0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0]]).bool()
PROMPT = KVPrompt.of(VISUAL, REAL)
# the first row holds visual tokens 2 (moved behind) and 4; the second holds one visual token less, and is filled up
MOVED = CachedColumns(
    columns=torch.tensor([[0, 2, 4, 5], [0, 1, 3, 5]]),
    places=torch.tensor([[0, 4, 2, 5], [0, 1, 3, 5]]),
    real=torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]]).bool(),
    filled=True,
    renumbered=False,
)


def test_layers_that_hold_the_same_are_one_group_with_its_counts() -> None:
    whole, cut = groups_of(PROMPT, [None, None, MOVED, MOVED], 4)
    assert (whole.layers, cut.layers) == ((0, 1), (2, 3))
    assert (whole.lengths, whole.visual) == ([6, 6], [4, 2])
    assert (cut.lengths, cut.visual) == ([4, 3], [2, 1])
    assert [cut.behind(layer) for layer in (1, 2, 3)] == [2, 1, 0]


def test_nothing_cut_is_one_group() -> None:
    (whole,) = groups_of(PROMPT, None, 4)
    assert whole.layers == (0, 1, 2, 3)
    assert whole.reads(VISUAL) is VISUAL


def test_attention_to_a_token_that_moved_is_told_under_its_own_number() -> None:
    _, cut = groups_of(PROMPT, [None, MOVED], 2)
    attention = torch.tensor([[[0.1, 0.4, 0.2, 0.2, 0.1]], [[0.0, 0.3, 0.3, 0.3, 0.1]]])  # the last key is generated
    spread = cut.spread(attention, PROMPT.width)
    assert torch.equal(spread[0, 0], torch.tensor([0.1, 0, 0.2, 0, 0.4, 0.2]))
    assert torch.equal(spread[1, 0], torch.tensor([0, 0.3, 0, 0.3, 0, 0.3]))
    step = PROMPT.step(spread, cut.has(torch.ones_like(VISUAL)), cut.visual, 1, None)
    assert step.counts == (2, 1)
    assert step.valid.tolist() == [[False, True, False, True], [False, True, False, False]]
    assert torch.equal(step.attention[0, 0], torch.tensor([0, 0.2, 0, 0.4]))


def test_what_is_read_of_a_cache_follows_its_own_order() -> None:
    _, cut = groups_of(PROMPT, [None, MOVED], 2)
    keep = ~VISUAL
    keep[0, 4] = keep[1, 3] = True
    assert cut.reads(keep).tolist() == [[True, True, False, True], [False, True, True, True]]
    assert cut.has(keep).tolist() == [[True, False, False, False, True, True], [False, True, False, True, False, True]]


def test_beams_repeat_what_their_prompt_holds() -> None:
    _, cut = groups_of(PROMPT.for_rows(4), [None, MOVED], 2)
    assert cut.lengths == [4, 4, 3, 3]
    assert cut.reads(PROMPT.for_rows(4).visual).tolist()[1] == [False, True, True, False]
