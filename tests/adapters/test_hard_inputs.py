"""Inputs at the edges, on a model of each kind of positions: hundreds of frames, thin frames, images in between."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from adapters.test_llava_onevision import TestLlavaOnevision as LlavaOnevision
from adapters.test_qwen2_vl import TestQwen2VL as Qwen2VL
from adapters.tiny import IMAGE, VIDEO, VISION_END, VISION_START, patches

import vidsieve
from vidsieve.testing import AdapterContract
from vidsieve.testing.adapter_kit import HALF, STEPS, Row, kept_columns, layouts_of, logits, rows_removed, run

KITS: dict[str, AdapterContract] = {"three axes": Qwen2VL(), "one axis": LlavaOnevision()}


@pytest.fixture(params=KITS.values(), ids=KITS)
def kit(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_512_units_decode_as_the_language_model_with_rows_taken_out(kit: Any) -> None:
    model = kit.build_model()
    inputs = kit.make_inputs(model, Row(frames=(512,)))
    output, report = run(model, HALF, inputs)
    assert report.keeps[0].shape[0] == 512
    assert report.attained_ratio == 0.5
    expected = rows_removed(model, inputs, kept_columns(model, inputs, report), STEPS)
    assert torch.allclose(logits(output)[0], expected, atol=5e-5)


def test_512_units_may_be_skipped_but_for_a_few(kit: Any) -> None:
    model = kit.build_model()
    policy = vidsieve.load_policy("pixel-change", retention_ratio=0.01)
    _, report = run(model, policy, kit.make_inputs(model, Row(frames=(512,))))
    assert int(report.keeps[0].any(dim=1).sum()) == 5


@pytest.mark.parametrize(("height", "width"), [(2, 40), (40, 2), (2, 2), (6, 22)])
def test_frames_may_be_long_and_thin(height: int, width: int) -> None:
    kit = Qwen2VL()
    model, grid = kit.build_model(), torch.tensor([[3, height, width]])
    video = {"pixel_values_videos": patches(grid, 1), "video_grid_thw": grid}
    ids = ids_of([4, 5], [VISION_START, *[VIDEO] * (3 * height * width // 4), VISION_END], [6, 7])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **video}
    assert layouts_of(model, inputs)[0].grid == (3, height // 2, width // 2)
    output, report = run(model, HALF, inputs)
    expected = rows_removed(model, inputs, kept_columns(model, inputs, report), STEPS)
    assert torch.equal(logits(output)[0], expected)


def test_an_image_may_stand_between_two_videos_and_one_behind_them(kit: Any) -> None:
    model = kit.build_model()
    videos, images = [kit.make_video(seed) for seed in (0, 1)], [kit.make_image(seed) for seed in (2, 3)]
    frame = ((VISION_START,), (VISION_END,)) if isinstance(kit, Qwen2VL) else ((), ())
    runs = [[*frame[0], *[VIDEO] * kit.runs(model, video)[0], *frame[1]] for video in videos]
    seen = [[*frame[0], *[IMAGE] * count_of(model, image), *frame[1]] for image in images]
    ids = ids_of([4, 5], runs[0], [6], seen[0], [7], runs[1], [8], seen[1], [9, 10])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **kit.join([videos, images])}
    output, report = run(model, HALF, inputs)
    keep = kept_columns(model, inputs, report)
    assert len(report.keeps) == 2
    assert bool(keep[ids[0] == IMAGE].all())
    assert torch.allclose(logits(output)[0], rows_removed(model, inputs, keep, STEPS), atol=2e-5)


def ids_of(*parts: Sequence[int]) -> torch.Tensor:
    return torch.tensor([[one for part in parts for one in part]])


def count_of(model: Any, image: dict[str, torch.Tensor]) -> int:
    return sum(part.shape[:-1].numel() for part in model.base_model.get_image_features(**image).pooler_output)
