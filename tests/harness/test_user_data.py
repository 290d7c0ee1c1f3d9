"""`--data FILE.jsonl` and `--videos DIR`."""

import json
from pathlib import Path

import pytest
from checkpoint_fixtures import Invoke

from vidsieve.framework.errors import DataError
from vidsieve.framework.task import SPLITS, Example, Task
from vidsieve.harness.data.user_data import LabelledData, VideoFolder, split_examples


def write(tmp_path: Path, *rows: object) -> Path:
    """A JSONL file; texts are written as they are."""
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"")
    file = tmp_path / "data.jsonl"
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return file


GOOD = {"video": "a.mp4", "question": "what?", "options": ["x", "y"], "answer": "x"}


def test_good_rows_are_all_read(tmp_path: Path) -> None:
    data = LabelledData(write(tmp_path, GOOD, "", {**GOOD, "id": "second", "options": None, "video": "b.mp4"}))
    first, second = data.all
    assert (first.id, first.options, first.answer) == ("line-1", ("x", "y"), "x")
    assert first.video == (tmp_path / "a.mp4").resolve()
    assert (second.id, second.options) == ("second", None)
    assert isinstance(data, Task)


def test_all_faults_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        {**GOOD, "id": "same"},
        "{not json",
        {"video": "a.mp4", "question": "what?"},
        {**GOOD, "answer": "z"},
        {**GOOD, "video": "gone.mp4"},
        {**GOOD, "id": "same"},
        {**GOOD, "awnser": "x"},
        {**GOOD, "options": ["x"], "answer": "x"},
        {**GOOD, "options": "x or y"},
        [1, 2],
        {**GOOD, "question": "  "},
        '{"video": "a.mp4", "video": "b.mp4", "question": "q", "answer": "x"}',
    )
    with pytest.raises(DataError) as caught:
        LabelledData(file)
    lines = str(caught.value).splitlines()
    expected = {
        2: "not valid JSON",
        3: "the key 'answer' is missing",
        4: "'z' is not among the options",
        5: "no such file",
        6: "stands in line 1 already",
        7: "Did you mean 'answer'",
        8: "at least two",
        9: "must be a list of texts",
        10: "must be a JSON object",
        11: "question must be text",
        12: "stands twice",
    }
    for number, sentence in expected.items():
        assert any(line.startswith(f"{file}:{number}: ") and sentence in line for line in lines), (number, lines)
    assert not any(line.startswith(f"{file}:1: ") for line in lines)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00", b"[" * 100_000])
def test_files_that_hold_no_example_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.jsonl"):
        LabelledData(file)


def test_two_spellings_of_one_video_are_one_group(tmp_path: Path) -> None:
    data = LabelledData(write(tmp_path, GOOD, {**GOOD, "video": "./a.mp4"}, {**GOOD, "video": str(tmp_path / "a.mp4")}))
    assert len({example.group for example in data.all}) == 1


def test_no_video_is_in_two_splits_and_none_is_lost() -> None:
    examples = [Example(id=f"{v}-{q}", group=f"video {v}", question="?") for v in range(23) for q in range(3)]
    parts = [split_examples(examples, split, seed=5) for split in SPLITS]
    groups = [{e.group for e in part} for part in parts]
    assert sum(len(part) for part in parts) == len(examples)
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert [e.id for e in split_examples(examples, "search", 5)] == [e.id for e in parts[0]]
    assert [e.id for e in split_examples(examples, "search", 6)] != [e.id for e in parts[0]]


def test_two_videos_are_enough_to_search_and_to_judge() -> None:
    examples = [Example(id=str(v), group=str(v), question="?") for v in range(2)]
    assert [len(split_examples(examples, split, 0)) for split in SPLITS] == [1, 0, 1]


@pytest.mark.parametrize(
    ("videos", "sizes"), [(2, (1, 0, 1)), (5, (2, 0, 3)), (6, (2, 1, 3)), (10, (3, 2, 5)), (100, (30, 20, 50))]
)
def test_half_is_held_out_and_the_search_keeps_more_than_the_rerank(videos: int, sizes: tuple[int, ...]) -> None:
    examples = [Example(id=str(v), group=str(v), question="?") for v in range(videos)]
    got = [len(split_examples(examples, split, 0)) for split in SPLITS]
    assert got == [*sizes]


def test_provenance_of_data_holds_no_path(dataset: Path) -> None:
    for task in (LabelledData(dataset), VideoFolder(dataset.parent, "what?")):
        assert str(dataset.parent) not in json.dumps(task.describe())


def test_a_real_checkpoint_without_data_names_the_two_ways(invoke: Invoke, qwen: Path) -> None:
    result = invoke("tune", "--model", qwen, "--latency-ms", 200)
    assert result.exit_code == 2
    assert "--data FILE.jsonl" in result.stderr
    assert "--videos DIR" in result.stderr
    assert "agreement" in result.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--data", "x.jsonl", "--videos", "d"], "exclude each other"),
        (["--rung", "static", "--data", "x.jsonl"], "--rung"),
        (["--question", "what?"], "belongs to --videos"),
        (["--frames", "0"], "must be above 0"),
        (["--fps", "-1"], "must be above 0"),
        (["--dtype", "float33"], "Did you mean 'float32'"),
        (["--attn", "flash"], "no attn named"),
        (["--data", "nowhere.jsonl"], "cannot be read"),
        (["--videos", "nowhere"], "nowhere"),
        (["--latency-ms", "-3"], "--latency-ms"),
        (["--trials", "0"], "--trials"),
        (["--policies", "vidcom"], "Did you mean 'vidcom2'"),
        (["--plugin", "gone.py"], "gone.py"),
        (["--rung", "hard"], "rung"),
        (["--frames", "5"], "16 or 8"),
    ],
)
def test_options_that_make_no_sense_are_refused(invoke: Invoke, bundled: None, words: list[str], sentence: str) -> None:
    target = [] if "--latency-ms" in words else ["--latency-ms", "200"]
    result = invoke("tune", "--model", "qwen2-vl-tiny", *target, *words)
    assert result.exit_code in (1, 2)
    assert sentence in result.stderr
    assert not Path("policy.yaml").exists()
