"""The columns a decode step reads, and the masks of every kind of kernel cut to them."""

from typing import Any

import pytest
import torch

from vidsieve.adapters.decoder.attention_taps import AttentionCall
from vidsieve.adapters.decoder.kv_view import View

KEEP = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 0, 1, 1]]).bool()
READ = [[0, 1, 3, 4, 5], [2, 0, 3, 4, 5]]  # column 2 of the second row only fills up


def masks_seen(mask: torch.Tensor | None, implementation: str) -> torch.Tensor:
    seen = {}
    keys = torch.arange(6.0).view(1, 1, 6, 1).expand(2, 1, 6, 1)

    def kernel(module: Any, query: Any, key: torch.Tensor, value: torch.Tensor, mask: Any) -> None:
        seen.update(key=key, mask=mask)

    call = AttentionCall(
        layer=0,
        module=torch.nn.Identity(),
        query=torch.zeros(2, 1, 1, 1),
        key=keys,
        value=keys,
        mask=mask,
        options={},
        kernel=kernel,
        implementation=implementation,
    )
    View.of(KEEP, [4, 3], later=1).run(call)
    assert seen["key"][:, 0, :, 0].tolist() == READ
    return seen["mask"]


@pytest.mark.parametrize(
    ("implementation", "shape"),
    [("flash_attention_2", (2, 5)), ("kernels-community/flash-attn2", (2, 5)), ("sdpa", (2, 1, 1, 5))],
)
def test_filled_up_columns_are_masked_where_the_kernel_had_no_mask(implementation: str, shape: tuple[int, ...]) -> None:
    mask = masks_seen(None, implementation)
    assert mask.shape == shape
    assert mask.flatten().tolist() == [True] * 5 + [False] + [True] * 4


def test_eager_gets_an_additive_mask() -> None:
    mask = masks_seen(None, "eager").flatten()
    assert mask[5] == torch.finfo(torch.float32).min
    assert mask.count_nonzero() == 1


def test_a_padding_mask_is_cut_to_the_columns_read() -> None:
    padded = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    expected = [[0, 1, 1, 1, 1], [0, 1, 1, 1, 1]]
    assert masks_seen(padded, "flash_attention_2").tolist() == expected
    assert masks_seen(padded.bool()[:, None, None], "sdpa")[:, 0, 0].int().tolist() == expected
    additive = torch.zeros(2, 4, 1, 6).masked_fill(padded[:, None, None] == 0, -1e9)
    assert (masks_seen(additive, "eager")[:, 3, 0] == 0).int().tolist() == expected
