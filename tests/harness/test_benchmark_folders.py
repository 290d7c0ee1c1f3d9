"""`--data FOLDER` of MVBench, Video-MME, MLVU and LongVideoBench: two examples each, with the releases' fields."""

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from vidsieve.framework.errors import DataError
from vidsieve.framework.registry import default
from vidsieve.framework.task import SPLITS, Task
from vidsieve.harness.clip_check import readable
from vidsieve.harness.data.benchmarks.benchmark_folder import BenchmarkFolder
from vidsieve.harness.session import open_session
from vidsieve.harness.setup import Setup
from vidsieve.media import write_video

FIXTURES = Path(__file__).parent.parent / "data" / "benchmarks"
VIDEOS = {
    "mvbench": ("video/ssv2_video/101.mp4", "video/star/Charades_segment/AAAAA.mp4"),
    "videomme": ("data/aAaAaAaAaAa.mp4", "data/bBbBbBbBbBb.mkv"),
    "mlvu": ("video/1_plotQA/film_1.mp4", "video/8_sub_scene/subPlot_1.mp4"),
    "longvideobench": ("videos/aaaaaaaaaaa.mp4", "videos/bbbbbbbbbbb.mp4"),
}
PARQUET = "videomme/test-00000-of-00001.parquet"
ROWS: list[dict[str, Any]] = [
    {
        **{"video_id": "001", "duration": "short", "videoID": "aAaAaAaAaAa", "question_id": "001-1"},
        **{"question": "How many squares are there?", "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."]},
        "answer": "C",
    },
    {
        **{"video_id": "601", "duration": "long", "videoID": "bBbBbBbBbBb", "question_id": "601-1"},
        **{"question": "What stands in the middle?"},
        **{"options": ["A. A cross.", "B. A circle.", "C. A line.", "D. A. Square."], "answer": "D"},
    },
]
"""What the parquet fixture holds, but for fields that are not read."""


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a stand-in for pyarrow reads from any file."""
    given = json.loads(json.dumps(ROWS))
    arrow, parquet = ModuleType("pyarrow"), ModuleType("pyarrow.parquet")
    arrow.parquet = parquet  # type: ignore[attr-defined]
    parquet.read_table = lambda file: SimpleNamespace(to_pylist=lambda: given)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow", arrow)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    return given


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    """Copy a fixture and put videos of a few frames where the release has them."""

    def make(name: str) -> Path:
        root = tmp_path / name
        shutil.copytree(FIXTURES / name, root)
        for number, video in enumerate(VIDEOS[name]):
            place = root / video
            place.parent.mkdir(parents=True, exist_ok=True)
            generator = torch.Generator().manual_seed(number)
            frames = torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
            write_video(place, frames, 4)
        return root

    return make


def edit(file: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the entries of an annotation file."""
    entries = json.loads(file.read_text())
    change(entries)
    file.write_text(json.dumps(entries))


def test_mvbench(folder: Callable[[str], Path]) -> None:
    task = BenchmarkFolder(folder("mvbench"))
    antonym, sequence = task.all
    assert (antonym.id, antonym.kind, antonym.group) == (
        "action_antonym-1",
        "action_antonym",
        "video/ssv2_video/101.mp4",
    )
    assert (antonym.options, antonym.answer) == (("to the left", "to the right", "nowhere"), "to the right")
    assert sequence.video is not None and sequence.video.parent.name == "Charades_segment"
    assert task.name == "MVBench" and task.notices == []


def test_videomme(folder: Callable[[str], Path], rows: list[dict[str, Any]]) -> None:
    task = BenchmarkFolder(folder("videomme"))
    one, other = task.all
    assert (one.id, one.kind, one.answer, one.options) == (
        "001-1",
        "short",
        "Three.",
        ("One.", "Two.", "Three.", "Four."),
    )
    assert (other.answer, other.group) == ("A. Square.", "data/bBbBbBbBbBb.mkv")


def test_mlvu_has_open_questions_too(folder: Callable[[str], Path]) -> None:
    task = BenchmarkFolder(folder("mlvu"))
    choice, free = task.all
    assert (choice.id, choice.answer, choice.kind) == ("1_plotQA-1", "Blue", "plotQA")
    assert (free.options, free.answer, free.kind) == (None, "It stops.", "subPlot")
    [notice] = task.notices
    assert "1 of subPlot are open questions" in notice


def test_longvideobench(folder: Callable[[str], Path]) -> None:
    task = BenchmarkFolder(folder("longvideobench"))
    assert [one.id for one in task.all] == ["aaaaaaaaaaa_0", "bbbbbbbbbbb_0"]
    assert [one.answer for one in task.all] == ["a circle", "the circle"]
    assert [one.kind for one in task.all] == ["T2O", "E3E"]
    assert task.notices == ["LongVideoBench: subtitles are not used; many of its questions refer to them."]


def test_the_parquet_fixture_holds_these_rows() -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an extra")
    read = parquet.read_table(FIXTURES / "videomme" / PARQUET).to_pylist()
    assert [{key: row[key] for key in ROWS[0]} for row in read] == ROWS


def test_without_pyarrow_a_sentence_says_what_to_install(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"test-00000.*pip install 'vidsieve\[parquet\]'"):
        BenchmarkFolder(folder("videomme"))


@pytest.mark.parametrize("name", ["mvbench", "mlvu", "longvideobench"])
def test_a_folder_is_a_task_that_a_child_process_can_be_given(folder: Callable[[str], Path], name: str) -> None:
    task = pickle.loads(pickle.dumps(BenchmarkFolder(folder(name))))
    assert isinstance(task, Task)
    assert sorted(one.id for split in SPLITS for one in task.examples(split, 9)) == sorted(one.id for one in task.all)
    described = task.describe()
    assert described["videos"] == "2" and len(described["sha256"]) == 64
    assert not any("/" in value for value in described.values())


def test_every_fault_is_told_with_file_entry_and_field(folder: Callable[[str], Path]) -> None:
    root = folder("mlvu")
    good = json.loads((root / "json" / "1_plotQA.json").read_text())[0]
    wrong = [
        {**good, "answer": "Violet"},
        {**good, "candidates": "Red or blue"},
        {**good, "question": " "},
        {key: value for key, value in good.items() if key != "video"},
        {**good, "video": "https://host/film.mp4"},
        "no object",
    ]
    edit(root / "json" / "1_plotQA.json", lambda entries: entries.extend(wrong))
    (root / "json" / "2_needle.json").write_text("{broken")
    (root / "json" / "3_ego.json").write_text('{"video": "a.mp4"}')
    with pytest.raises(DataError) as caught:
        BenchmarkFolder(root)
    told = str(caught.value)
    for sentence in (
        "json/1_plotQA.json, entry 2, field 'answer': 'Violet' is not among the options",
        "entry 3, field 'candidates': must be a list",
        "entry 4, field 'question': must be text",
        "entry 5, field 'video': is missing",
        "entry 6, field 'video': 'https://host/film.mp4': is an address",
        "entry 7: must be an object, got str",
        "json/2_needle.json: is not valid JSON",
        "json/3_ego.json: must be a list of objects, got dict",
    ):
        assert sentence in told
    assert "entry 1," not in told


def test_a_letter_or_number_that_names_no_option_is_a_fault(
    folder: Callable[[str], Path], rows: list[dict[str, Any]]
) -> None:
    rows[0]["answer"], rows[1]["answer"] = "E", "three"
    with pytest.raises(DataError, match=r"entry 1, field 'answer'.*of 4 options, got 'E'") as caught:
        BenchmarkFolder(folder("videomme"))
    assert "entry 2, field 'answer'" in str(caught.value)
    root = folder("longvideobench")
    edit(root / "lvb_val.json", lambda entries: [one.update(correct_choice=5) for one in entries])
    with pytest.raises(DataError, match=r"entry 1, field 'correct_choice': must be a number from 0 to 4, got 5"):
        BenchmarkFolder(root)


def test_an_id_that_stands_twice_is_a_fault(folder: Callable[[str], Path]) -> None:
    root = folder("longvideobench")
    edit(root / "lvb_val.json", lambda entries: entries[1].update(id=entries[0]["id"]))
    with pytest.raises(DataError, match=r"entry 2: the id 'aaaaaaaaaaa_0' stands in lvb_val.json, entry 1 already"):
        BenchmarkFolder(root)


def test_missing_videos_are_one_sentence_with_counts_and_no_fault_when_bad_ones_are_skipped(
    folder: Callable[[str], Path],
) -> None:
    root = folder("longvideobench")
    (root / VIDEOS["longvideobench"][1]).unlink()
    with pytest.raises(DataError, match=r"1 of 2 videos are missing \(the first: videos/bbbbbbbbbbb.mp4\)") as caught:
        BenchmarkFolder(root)
    assert "\n" not in str(caught.value)
    assert len(BenchmarkFolder(root, missing_ok=True).all) == 2


def test_videos_are_found_wherever_they_were_unpacked_unless_two_have_the_name(folder: Callable[[str], Path]) -> None:
    root = folder("longvideobench")
    (root / "part-3").mkdir()
    (root / VIDEOS["longvideobench"][0]).rename(root / "part-3" / "aaaaaaaaaaa.mp4")
    assert BenchmarkFolder(root).all[0].group == "part-3/aaaaaaaaaaa.mp4"
    shutil.copytree(root / "part-3", root / "part-4")
    with pytest.raises(DataError, match=r"entry 1, field 'video_path'.*more than once \(part-3/.*, part-4/"):
        BenchmarkFolder(root)


def test_a_question_about_a_part_of_a_video_needs_the_cut_video(folder: Callable[[str], Path]) -> None:
    root = folder("mvbench")
    whole = root / "video/star/Charades_v1_480/AAAAA.mp4"
    whole.parent.mkdir()
    (root / VIDEOS["mvbench"][1]).rename(whole)
    task = BenchmarkFolder(root)
    assert [one.id for one in task.all] == ["action_antonym-1"]
    [notice] = task.notices
    assert "left out are 1 questions that name a part of their video" in notice


def test_a_question_with_two_equal_options_is_left_out_with_a_word(folder: Callable[[str], Path]) -> None:
    root = folder("longvideobench")
    edit(root / "lvb_val.json", lambda entries: entries[0].update(candidates=["a", "a"]))
    task = BenchmarkFolder(root)
    assert len(task.all) == 1 and any("1 questions that have an option twice" in one for one in task.notices)


def test_other_folders_are_refused_with_what_is_known(folder: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no known layout.*MVBench: json/action_sequence.json.*lvb_val.json"):
        BenchmarkFolder(tmp_path / "empty")
    root = folder("mlvu")
    shutil.copy(FIXTURES / "longvideobench" / "lvb_val.json", root)
    with pytest.raises(DataError, match="holds files of MLVU and LongVideoBench"):
        BenchmarkFolder(root)


def test_a_model_is_scored_on_a_folder_and_what_is_not_used_is_said(qwen: Path, folder: Callable[[str], Path]) -> None:
    setup = Setup(model=str(qwen), data=str(folder("mlvu")), frames=4, max_new_tokens=2, feature_store="off")
    session, told = open_session(setup, default()), list[str]()
    task = readable(session.task, lambda task: task.all, lambda example: None, skip_bad=False, notice=told.append)
    assert told == session.task.notices != []
    choice, free = session.bench.score(None, task.examples("heldout", 9) + task.examples("search", 9))
    assert {choice.p_gold is None, free.p_gold is None} == {True, False}
    assert {choice.kind, free.kind} == {"plotQA", "subPlot"}
