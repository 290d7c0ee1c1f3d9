"""`positions: trained` counts on behind a picture from the largest position there is."""

import pytest
import torch
from adapters.test_qwen2_vl import TestQwen2VL as Kit
from adapters.tiny import IDS
from torch import Tensor

from vidsieve import applied, compress, load_policy
from vidsieve.adapters.prompt.positions import original_positions, trained_positions
from vidsieve.adapters.transformers_internals import rope_index
from vidsieve.testing.adapter_kit import Row

IMAGE, VIDEO = 1, 2


def by_the_largest(kinds: list[int], grids: list[tuple[int, int, int]]) -> list[list[int]]:
    """Positions of one prompt, group by group: behind each group from its largest position on."""
    axes: list[list[int]] = [[], [], []]
    following, waiting, at = 0, list(grids), 0
    while at < len(kinds):
        if kinds[at] == 0:
            for axis in axes:
                axis.append(following)
            following, at = following + 1, at + 1
            continue
        time, height, width = waiting.pop(0)
        cells = [(t, h, w) for t in range(time) for h in range(height) for w in range(width)]
        for cell in cells:
            for axis, value in zip(axes, cell, strict=True):
                axis.append(following + value)
        following += max(time, height, width)
        at += len(cells)
    return axes


PROMPTS = [
    [(VIDEO, (8, 2, 3))],
    [(VIDEO, (8, 2, 3)), (VIDEO, (2, 4, 3))],
    [(VIDEO, (9, 2, 2)), (IMAGE, (1, 2, 5)), (VIDEO, (6, 1, 2))],
    [(IMAGE, (1, 4, 4)), (VIDEO, (12, 2, 2))],
]


@pytest.mark.parametrize("pictures", PROMPTS)
@pytest.mark.parametrize(("left", "right"), [(0, 0), (3, 0), (0, 2)])
def test_text_goes_on_behind_the_largest_position(pictures: list, left: int, right: int) -> None:
    model = Kit().build_model()
    kinds = [0, 0]
    for kind, (time, height, width) in pictures:
        kinds += [kind] * (time * height * width) + [0, 0, 0]
    grids = [grid for _, grid in pictures]
    row = torch.tensor([0] * left + kinds + [0] * right)[None]
    mask = torch.tensor([0] * left + [1] * len(kinds) + [0] * right)[None]
    ids = torch.where(row == IMAGE, IDS["image_token_id"], torch.where(row == VIDEO, IDS["video_token_id"], 5))
    patches = {kind: [(t, 2 * h, 2 * w) for one, (t, h, w) in pictures if one == kind] for kind in (IMAGE, VIDEO)}
    inputs = {"mm_token_type_ids": row.int()}
    for kind, name in ((IMAGE, "image_grid_thw"), (VIDEO, "video_grid_thw")):
        if patches[kind]:
            inputs[name] = torch.tensor(patches[kind])
    found = trained_positions(original_positions(rope_index(model), inputs, ids, mask), row, mask)
    real = mask[0].bool()
    assert found[:, 0, real].tolist() == by_the_largest(kinds, grids)


def _prompt(frames: int) -> dict[str, Tensor]:
    return Kit().make_inputs(Kit().build_model(), Row(frames=(frames,)))


def test_the_uncompressed_model_answers_as_with_these_positions_given() -> None:
    model, inputs = Kit().build_model(), _prompt(12)
    mask, ids = inputs["attention_mask"], inputs["input_ids"]
    kinds = 2 * ids.eq(model.config.video_token_id).int()
    typed = inputs | {"mm_token_type_ids": kinds}
    three = trained_positions(original_positions(rope_index(model), typed, ids, mask), kinds, mask)
    text = (mask.cumsum(dim=1) - 1)[None]
    expected = model.generate(**inputs, position_ids=torch.cat([text, three]), max_new_tokens=4, do_sample=False)
    policy = load_policy("none", settings={"positions": "trained"})
    with applied(model, policy):
        found = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(found, expected)


def test_kept_tokens_have_the_positions_of_the_whole_prompt() -> None:
    model, inputs = Kit().build_model(), _prompt(12)
    whole, _ = compress(model, inputs, load_policy("none", settings={"positions": "trained"}))
    policy = load_policy("random", retention_ratio=0.25, settings={"positions": "trained"})
    short, report = compress(model, inputs, policy)
    video = inputs["input_ids"][0].eq(model.config.video_token_id)
    kept = torch.cat([keep.flatten() for keep in report.keeps])
    stays = ~video
    stays[video] = kept
    assert torch.equal(short["position_ids"][1:, 0], whole["position_ids"][1:, 0, stays])
    assert short["position_ids"][1:].max() > inputs["video_grid_thw"][0, 0]


def test_short_videos_are_numbered_as_transformers_does() -> None:
    model, inputs = Kit().build_model(), _prompt(2)
    trained, _ = compress(model, inputs, load_policy("none", settings={"positions": "trained"}))
    original, _ = compress(model, inputs, load_policy("none"))
    assert torch.equal(trained["position_ids"], original["position_ids"])
