"""The bundled task: reproducible clips, splits apart, and answers that the pixels themselves bear out."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vidsieve.bundled.bundled_task import BundledTask, write_dataset
from vidsieve.bundled.render import PALETTE
from vidsieve.bundled.scene import RUNGS
from vidsieve.bundled.shapes import TINY
from vidsieve.bundled.words import COLORS, KINDS, OPTIONS, QUADRANTS, TOKEN_ID
from vidsieve.framework.errors import UnknownNameError, UsageError
from vidsieve.framework.task import SPLITS, Example, Task


def _near(pixels: Tensor, color: str) -> Tensor:
    """Where RGB pixels [..., 3, h, w] are about as `color` is painted."""
    target = torch.tensor(PALETTE[COLORS.index(color)]).view(3, 1, 1)
    return (pixels.float() - target).abs().amax(-3) < 32


def _fullest_quadrant(mask: Tensor) -> str:
    half = TINY.side // 2
    corners = [mask[..., rows, cols].sum() for rows in (slice(0, half), slice(half, None)) for cols in
               (slice(0, half), slice(half, None))]  # fmt: skip
    return QUADRANTS[int(torch.stack(corners).argmax())]


def _of_kind(examples: list[Example], kind: str) -> list[Example]:
    return [example for example in examples if example.kind == kind]


@pytest.fixture(scope="module")
def static() -> list[Example]:
    return BundledTask("static").examples("search", 64 * len(KINDS))


def test_it_is_a_task() -> None:
    assert isinstance(BundledTask(), Task)


def test_an_example_keeps_its_pixels_whatever_is_asked_beside_it(static: list[Example]) -> None:
    again = BundledTask("static").examples("search", 5 * len(KINDS))
    for one, other in zip(static, again, strict=False):
        assert (one.id, one.question, one.answer) == (other.id, other.question, other.answer)
        assert one.frames is not None
        assert torch.equal(one.frames, other.frames)


def test_no_clip_is_in_two_splits_or_seeds_or_rungs() -> None:
    seen = Counter()
    for rung in RUNGS:
        for split in SPLITS:
            for seed in (0, 1):
                for example in BundledTask(rung).examples(split, 18, seed=seed):
                    assert example.frames is not None
                    seen[(example.group, hash(example.frames.numpy().tobytes()))] += 1
    assert set(seen.values()) == {len(KINDS)}
    assert len({pixels for _, pixels in seen}) == len({group for group, _ in seen}) == 3 * 3 * 2 * 2


def test_examples_of_a_clip_share_its_pixels_and_ask_each_kind_once(static: list[Example]) -> None:
    clip = [example for example in static if example.group == static[0].group]
    assert [example.kind for example in clip] == list(KINDS)
    assert len({example.frames.data_ptr() for example in clip if example.frames is not None}) == 1


@pytest.mark.parametrize("rung", RUNGS)
def test_every_answer_is_among_its_options_and_no_option_is_given_away(rung: str) -> None:
    examples = BundledTask(rung).examples("rerank", 200 * len(KINDS))
    for kind in KINDS:
        answers = Counter(example.answer for example in _of_kind(examples, kind))
        assert set(answers) <= set(OPTIONS[kind])
        guess = max(answers.values()) / sum(answers.values())
        assert guess < 1 / len(OPTIONS[kind]) + 0.13


def test_every_word_of_a_question_and_its_answer_is_known(static: list[Example]) -> None:
    for example in static:
        assert all(word in TOKEN_ID for word in f"{example.question} {example.answer}".split())


def test_signs_stand_in_the_named_quadrant_of_the_median_picture(static: list[Example]) -> None:
    right = []
    for example in _of_kind(static, "sign_where"):
        assert example.frames is not None
        median = example.frames.median(dim=0).values
        right.append(_fullest_quadrant(_near(median, example.question.split()[3])) == example.answer)
    assert sum(right) / len(right) >= 0.95


def test_flashes_differ_from_the_median_picture_where_the_answer_says(static: list[Example]) -> None:
    right = []
    discs = {example.group: example.answer for example in _of_kind(static, "disc_color")}
    for example in _of_kind(static, "where"):
        color = example.question.split()[3]
        if discs[example.group] == color:
            continue
        assert example.frames is not None
        median = example.frames.median(dim=0).values
        event = _near(example.frames, color) & ~_near(median, color)
        right.append(_fullest_quadrant(event.sum(0)) == example.answer)
    assert len(right) > 40
    assert sum(right) / len(right) >= 0.95


def test_the_disc_moves_as_the_answer_says(static: list[Example]) -> None:
    right = []
    discs = {example.group: str(example.answer) for example in _of_kind(static, "disc_color")}
    for example in _of_kind(static, "direction"):
        assert example.frames is not None
        median = example.frames.median(dim=0).values
        moving = _near(example.frames, discs[example.group]) & ~_near(median, discs[example.group])
        place = moving.nonzero().float()
        early, late = place[place[:, 0] < 5].mean(0), place[place[:, 0] > 10].mean(0)
        _, down, across = (late - early).tolist()
        moved = ("down" if down > 0 else "up") if abs(down) > abs(across) else ("right" if across > 0 else "left")
        right.append(moved == example.answer)
    assert sum(right) / len(right) >= 0.9


def test_half_the_frames_are_those_that_sampling_by_count_takes() -> None:
    whole = BundledTask("cuts").examples("search", 1)[0].frames
    half = BundledTask("cuts", frame_count=8).examples("search", 1)[0]
    assert whole is not None
    assert half.frames is not None
    assert torch.equal(half.frames, whole[::2])
    assert half.fps == 4.0


def test_written_as_files_the_examples_keep_ids_questions_and_pixels(tmp_path: Path) -> None:
    files: dict[Path, Tensor] = {}
    task = BundledTask("jitter")
    written = write_dataset(
        task, "heldout", 11, tmp_path, write_video=lambda path, frames, _fps: files.update({path: frames})
    )
    lines = [json.loads(line) for line in (tmp_path / "examples.jsonl").read_text().splitlines()]
    original = task.examples("heldout", 11)
    assert len(files) == 2
    for line, filed, example in zip(lines, written, original, strict=True):
        assert line["id"] == filed.id == example.id
        assert (line["question"], line["answer"]) == (example.question, example.answer)
        assert tuple(line["options"]) == example.options
        assert filed.frames is None
        assert filed.video == tmp_path / line["video"]
        assert example.frames is not None
        assert torch.equal(files[tmp_path / line["video"]], example.frames)


def test_unknown_rungs_and_splits_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="static"):
        BundledTask("statik")
    with pytest.raises(UnknownNameError, match="heldout"):
        BundledTask().examples("held-out", 1)
    with pytest.raises(UsageError, match="16 or 8"):
        BundledTask(frame_count=5)
    with pytest.raises(UsageError, match="negative"):
        BundledTask().examples("search", -1)
    assert BundledTask().examples("search", 0) == []
