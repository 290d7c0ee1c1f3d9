"""What a layer's cache holds and a step reads: token numbers whatever its order, masks of every kind of kernel."""

import pytest
import torch

from vidsieve.adapters.decoder.decode_kv import _groups_of, _shown
from vidsieve.adapters.prompt.columns import CachedColumns, Columns

REAL = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
VISUAL = torch.tensor([[0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0]]).bool()
PROMPT = Columns(ids=REAL, mask=REAL, positions=REAL, visual=VISUAL)
# the first row holds visual tokens 2 (moved behind) and 4; the second holds one visual token less, and is filled up
MOVED = CachedColumns(
    columns=torch.tensor([[0, 2, 4, 5], [0, 1, 3, 5]]),
    places=torch.tensor([[0, 4, 2, 5], [0, 1, 3, 5]]),
    real=torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]]).bool(),
    filled=True,
)
KEEP = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 0, 1, 1]]).bool()
READ = [[0, 1, 3, 4, 5], [2, 0, 3, 4, 5]]  # column 2 of the second row only fills up


def test_layers_that_hold_the_same_are_one_group_with_its_counts() -> None:
    whole, cut = _groups_of(PROMPT, [None, None, MOVED, MOVED], 4)
    assert (whole.layers, cut.layers) == ((0, 1), (2, 3))
    assert (whole.lengths, whole.visual) == ([6, 6], [4, 2])
    assert (cut.lengths, cut.visual) == ([4, 3], [2, 1])
    assert [cut.behind(layer) for layer in (1, 2, 3)] == [2, 1, 0]


def test_nothing_cut_is_one_group() -> None:
    (whole,) = _groups_of(PROMPT, None, 4)
    assert whole.layers == (0, 1, 2, 3)
    assert whole.held.among(VISUAL) is VISUAL


def test_attention_to_a_token_that_moved_is_told_under_its_own_number() -> None:
    attention = torch.tensor([[[0.1, 0.4, 0.2, 0.2, 0.1]], [[0.0, 0.3, 0.3, 0.3, 0.1]]])  # the last key is generated
    spread = MOVED.spread(attention, PROMPT.width)
    assert torch.equal(spread[0, 0], torch.tensor([0.1, 0, 0.2, 0, 0.4, 0.2]))
    assert torch.equal(spread[1, 0], torch.tensor([0, 0.3, 0, 0.3, 0, 0.3]))
    shown = _shown(PROMPT, spread, MOVED.has(torch.ones_like(VISUAL)))
    assert shown["valid"].tolist() == [[False, True, False, True], [False, True, False, False]]
    assert torch.equal(shown["attention"][0, 0], torch.tensor([0, 0.2, 0, 0.4]))


def test_what_is_read_of_a_cache_follows_its_own_order() -> None:
    keep = ~VISUAL
    keep[0, 4] = keep[1, 3] = True
    assert MOVED.among(keep).tolist() == [[True, True, False, True], [False, True, True, True]]
    assert MOVED.has(keep).tolist() == [
        [True, False, False, False, True, True],
        [False, True, False, True, False, True],
    ]


def test_beams_repeat_what_their_prompt_holds() -> None:
    wide = PROMPT.for_rows(4)
    _, cut = _groups_of(wide, [None, MOVED], 2)
    assert cut.lengths == [4, 4, 3, 3]
    assert cut.held.among(wide.visual).tolist()[1] == [False, True, True, False]


def masks_read(mask: torch.Tensor | None, implementation: str) -> torch.Tensor:
    """The mask of a step that reads `KEEP` and the newest column; the keys are checked on the way."""
    view = CachedColumns.read(KEEP, [4, 3], later=1)
    keys = torch.arange(6.0).view(1, 1, 6, 1).expand(2, 1, 6, 1)
    assert view.taken(keys)[:, 0, :, 0].tolist() == READ
    return view.mask(mask, 1, implementation, torch.float32)


@pytest.mark.parametrize(
    ("implementation", "shape"),
    [("flash_attention_2", (2, 5)), ("kernels-community/flash-attn2", (2, 5)), ("sdpa", (2, 1, 1, 5))],
)
def test_filled_up_columns_are_masked_where_the_kernel_had_no_mask(implementation: str, shape: tuple[int, ...]) -> None:
    mask = masks_read(None, implementation)
    assert mask.shape == shape
    assert mask.flatten().tolist() == [True] * 5 + [False] + [True] * 4


def test_eager_gets_an_additive_mask() -> None:
    mask = masks_read(None, "eager").flatten()
    assert mask[5] == torch.finfo(torch.float32).min
    assert mask.count_nonzero() == 1


def test_a_padding_mask_is_cut_to_the_columns_read() -> None:
    padded = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    expected = [[0, 1, 1, 1, 1], [0, 1, 1, 1, 1]]
    assert masks_read(padded, "flash_attention_2").tolist() == expected
    assert masks_read(padded.bool()[:, None, None], "sdpa")[:, 0, 0].int().tolist() == expected
    additive = torch.zeros(2, 4, 1, 6).masked_fill(padded[:, None, None] == 0, -1e9)
    assert (masks_read(additive, "eager")[:, 3, 0] == 0).int().tolist() == expected
