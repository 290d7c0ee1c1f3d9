"""The mini models' task: longer clips, more silhouettes, a disc that turns, and labels that the pixels bear out."""

from collections import Counter

import pytest
import torch

from vidsieve.bundled import shapes
from vidsieve.bundled.bundled_task import BundledTask
from vidsieve.bundled.questions import every_question, facts, things_shown
from vidsieve.bundled.render import PALETTE, render
from vidsieve.bundled.scene import RUNGS, Window, sample_scenes
from vidsieve.bundled.seeds import rng_of
from vidsieve.bundled.shapes import LLAVA_ONEVISION_MINI, QWEN2_VL_MINI, SHAPES, TINY, shape_of
from vidsieve.bundled.train.configs import build_model
from vidsieve.bundled.words import COLORS, DIRECTIONS, LONG_VOCABULARY, TOKEN_ID, VOCABULARY
from vidsieve.framework.errors import UsageError

MINI = QWEN2_VL_MINI


def test_a_mini_model_has_the_shape_of_the_field() -> None:
    for shape in (QWEN2_VL_MINI, LLAVA_ONEVISION_MINI):
        assert shape.groups * shape.places == 2048
        assert shape.frames == 64
        model = build_model(shape)
        assert len(model.model.language_model.layers) == 12
        # float32 weights; the tied head is stored once
        assert 4 * sum(weight.numel() for weight in model.parameters()) < 12e6


def test_words_of_the_tiny_models_keep_their_ids() -> None:
    assert LONG_VOCABULARY[: len(VOCABULARY)] == VOCABULARY
    assert len(set(LONG_VOCABULARY)) == len(LONG_VOCABULARY) <= 96
    for shape in SHAPES:
        assert shape_of(shape.name) is shape
        assert {word for kind in shape.kinds for word in shape.options(kind)} <= set(shape.vocabulary)


@pytest.mark.parametrize("rung", RUNGS)
def test_every_kind_is_asked_of_a_clip_in_known_words(rung: str) -> None:
    examples = BundledTask(rung, shape=MINI).examples("rerank", 2 * len(MINI.kinds))
    assert [one.kind for one in examples] == [*MINI.kinds, *MINI.kinds]
    for one in examples:
        assert one.frames is not None
        assert one.frames.shape == (64, 3, 128, 128)
        assert one.answer in (one.options or ())
        assert all(word in TOKEN_ID for word in f"{one.question} {one.answer}".split())


@pytest.mark.parametrize("rung", RUNGS)
def test_no_answer_is_given_away_by_its_frequency(rung: str) -> None:
    scene = sample_scenes(MINI, next(r for r in RUNGS if r == rung), 300, rng_of("answers", rung))
    answers: dict[str, Counter[str]] = {kind: Counter() for kind in MINI.kinds}
    for clip in facts(scene):
        for asked in every_question(clip):
            answers[asked.kind][asked.answer] += 1
    for kind, counts in answers.items():
        if kind != "exist":  # asked as often with yes as with no
            # on the static rung flashes and signs have four of the eight silhouettes each
            alike = 4 if kind.endswith("shape") and rung == "static" else len(MINI.options(kind))
            assert max(counts.values()) / sum(counts.values()) < 1 / alike + 0.13, kind


def test_half_the_frames_are_what_llava_is_given() -> None:
    whole = BundledTask("static", shape=MINI).examples("search", 1)[0]
    half = BundledTask("static", shape=LLAVA_ONEVISION_MINI, frame_count=32).examples("search", 1)[0]
    assert whole.frames is not None
    assert half.frames is not None
    assert torch.equal(half.frames, whole.frames[::2])
    assert (whole.question, whole.answer) == (half.question, half.answer)
    with pytest.raises(UsageError, match="64 or 32"):
        BundledTask("static", shape=MINI, frame_count=16)
    assert not whole.id.startswith("static")  # the tiny models' clips of that name are others


def test_the_disc_turns_and_each_leg_goes_where_the_answer_says() -> None:
    scene = sample_scenes(MINI, "static", 60, rng_of("legs"))
    margin = scene.disc_path.amin(), scene.disc_path.amax()
    assert margin[0] >= 7.9
    assert margin[1] <= MINI.side - 7.9
    for clip, told in enumerate(facts(scene)):
        assert told.directions[0] != told.directions[1]
        turn = 2 * int(scene.turn[clip])
        for direction, leg in zip(told.directions, (slice(0, turn), slice(turn + 2, None)), strict=True):
            down, right = (scene.disc_path[clip, leg][-1] - scene.disc_path[clip, leg][0]).tolist()
            moved = {"left": right < -10, "right": right > 10, "up": down < -10, "down": down > 10}
            assert [name for name in DIRECTIONS if moved[name]] == [direction]


def test_in_a_window_nothing_happens_outside() -> None:
    window = Window(3, 1, 4)
    inside = set(window.inside(MINI.cells).tolist())
    scene = sample_scenes(MINI, "static", 20, rng_of("window"), groups=12, flashes=(2, 6), window=window)
    shown = things_shown(scene)
    places = {place for place in range(MINI.places) if bool((shown[..., place] > 0).any())}
    assert places <= inside
    assert scene.groups == 12


def test_what_a_cell_is_said_to_show_is_painted_there() -> None:
    """Each flash, sign and leg has its colour in the cell and group that it is marked in."""
    rng = rng_of("marks")
    scene = sample_scenes(MINI, "static", 6, rng)
    frames, shown = render(scene, rng).float(), things_shown(scene)
    hits = []
    for clip, told in enumerate(facts(scene)):
        colors = {thing.number: thing.color for thing in (*told.flashes, *told.signs)}
        colors |= dict.fromkeys(told.legs, told.disc_color)
        assert set(shown[clip].unique().tolist()) - {0} <= set(colors)
        for group, place in shown[clip].nonzero().tolist():
            row, column = divmod(place, MINI.cells)
            cell = frames[clip, 2 * group, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            color = torch.tensor(PALETTE[COLORS.index(colors[int(shown[clip, group, place])])]).view(3, 1, 1)
            hits.append(bool(((cell - color).abs().amax(0) < 40).sum() > 8))
    assert sum(hits) / len(hits) > 0.97


def test_tiny_clips_are_drawn_as_ever() -> None:
    """The tables and weights of the tiny models stand on these clips."""
    task = BundledTask("cuts")
    told = [(one.id, one.question, one.answer) for one in task.examples("heldout", 3, seed=1)]
    assert told == EVER
    assert TINY.frames == 16
    assert shapes.CELL == 16


EVER = [
    ("cuts-heldout-1-00000-first_color", "what color is the first flash ?", "yellow"),
    ("cuts-heldout-1-00000-last_color", "what color is the last flash ?", "red"),
    ("cuts-heldout-1-00000-shape", "what shape is the blue flash ?", "square"),
]
