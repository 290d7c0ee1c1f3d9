"""The demo answers with and without a policy; gradio is a shell around that, and its absence is one sentence."""

import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from checkpoint_fixtures import Invoke

from vidsieve import RetentionError, UsageError
from vidsieve.framework.registry import default
from vidsieve.harness.model_choice import choose
from vidsieve.harness.model_loading import load
from vidsieve.harness.setup import Setup
from vidsieve.integrations.demo.demo_answers import SideBySide, samples
from vidsieve.integrations.demo.gradio_page import build_page, start
from vidsieve.integrations.demo.kept_overlay import kept_overlay

QUESTION = "what color is the disc ?"


@pytest.fixture
def clip(dataset: Path) -> str:
    return str(sorted(dataset.parent.glob("*.mp4"))[0])


@pytest.fixture
def side_by_side(bundled: None) -> SideBySide:
    setup = Setup(model="qwen2-vl-tiny", feature_store="off", max_new_tokens=2)
    return SideBySide(load(choose(setup.model, None, default()), setup, default()), setup, default())


def test_kept_tokens_are_bright_and_dropped_ones_dark() -> None:
    frames = torch.full((4, 3, 4, 6), 100, dtype=torch.uint8)
    frames[2:] = 200
    keep = torch.tensor([[True, False], [False, False]])
    first, second = kept_overlay(frames, keep, 1, 2)
    assert first.shape == (4, 6, 3)
    assert first[:, :3].eq(100).all() and first[:, 3:].eq(20).all()
    assert second.eq(40).all()  # the second unit begins with the third frame


def test_both_sides_tokens_milliseconds_and_pictures_are_told(side_by_side: SideBySide, clip: str) -> None:
    found = side_by_side.compare(clip, QUESTION, "vidcom2", 0.25)
    told = {row[0]: row[1:] for row in found.rows}
    assert told["visual tokens in the prompt"] == ["288", "72"]
    assert all(float(ms) > 0 for ms in told["ms to the first token"])
    assert len(found.pictures) == 8
    captions = [caption for _, caption in found.pictures]
    assert captions[0].startswith("0.0 s: ") and captions[0].endswith(" of 36")
    assert sum(int(caption.split()[2]) for caption in captions) == 72
    assert found.notes == ["vidcom2: 72 of 288 visual tokens in the prompt."]


def test_what_is_pruned_inside_the_model_is_told_beside_the_prompt(side_by_side: SideBySide, clip: str) -> None:
    found = side_by_side.compare(clip, "what color is the zebra ?", "fastv", 0.5)
    assert "does not know 'zebra'" in found.notes[0]
    assert found.notes[1].startswith("fastv: 288 of 288 visual tokens in the prompt, 0.")
    assert found.notes[1].endswith(" as a mean over the layers.")


def test_a_policy_that_removes_nothing_is_told(side_by_side: SideBySide, clip: str) -> None:
    found = side_by_side.compare(clip, QUESTION, "vidcom2", 1.0)
    assert found.notes == ["vidcom2: 288 of 288 visual tokens in the prompt.", "Nothing of this clip was removed."]


@pytest.mark.parametrize(("video", "question"), [(None, QUESTION), ("", QUESTION), ("clip.mp4", "  ")])
def test_a_missing_clip_or_question_is_said(side_by_side: SideBySide, video: str | None, question: str) -> None:
    with pytest.raises(UsageError, match=r"there is no (clip|question) yet"):
        side_by_side.compare(video, question, "vidcom2", 0.25)


def test_the_bundled_model_brings_clips_that_it_can_read(side_by_side: SideBySide, tmp_path: Path) -> None:
    found = samples(side_by_side.loaded, tmp_path)
    assert len(found) == 2
    assert all(Path(file).is_file() and question.endswith("?") for file, question in found)


def test_the_page_shows_what_was_found_and_what_was_refused(
    side_by_side: SideBySide, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradio = MagicMock()
    gradio.Error = type("Error", (Exception,), {"__init__": lambda self, text, **_: Exception.__init__(self, text)})
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    build_page(side_by_side, [[clip, QUESTION]], "vidcom2", 0.25)
    compare = gradio.on.call_args.args[1]
    rows, pictures, notes = compare(clip, QUESTION, "dycoke", 0.5)
    assert rows[1][1:] == ["288", "144"] and pictures[0][0].shape[-1] == 3 and "144 of 288" in notes
    with pytest.raises(gradio.Error, match=r"it reaches 0\.25 to 1") as refused:
        compare(clip, QUESTION, "dycoke", 0.1)
    assert isinstance(refused.value.__context__, RetentionError)


def test_a_port_that_is_taken_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", MagicMock())
    page = SimpleNamespace(launch=MagicMock(side_effect=OSError("taken")))
    with pytest.raises(UsageError, match=r"7860 cannot be served \(taken\)"):
        start(page, "127.0.0.1", 7860, Path())


def test_without_gradio_one_sentence_says_what_to_install(
    invoke: Invoke, bundled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = invoke("demo", "--model", "qwen2-vl-tiny")
    assert result.exit_code == 2
    assert "pip install 'gradio>=6,<7'" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_policy_that_is_not_there_is_said_before_anything_is_loaded(invoke: Invoke) -> None:
    result = invoke("demo", "--model", "qwen2-vl-tiny", "--policy", "vidcom")
    assert result.exit_code != 0
    assert "vidcom2" in result.stderr
