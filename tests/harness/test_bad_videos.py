"""Videos that cannot be read are found before anything is measured, all at once, and can be left out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_fixtures import Invoke

import vidsieve
from vidsieve.framework.errors import MediaError, ModelError, UsageError, VidsieveError
from vidsieve.framework.registry import default
from vidsieve.framework.task import SPLITS
from vidsieve.harness.clip_check import ReadableTask, clip_opener, readable
from vidsieve.harness.data.user_data import LabelledData, VideoFolder
from vidsieve.harness.model_choice import choose
from vidsieve.harness.setup import Setup
from vidsieve.media import read_ends, read_video, write_video
from vidsieve.tuner.result import Listener

TUNE = ("tune", "--trials", 1, "--examples", 2, "--policies", "vidcom2", "--in-process", "--speedup", 1.3)
WORK = ("--frames", 8, "--max-new-tokens", 2)


@pytest.fixture
def videos(dataset: Path, tmp_path: Path) -> Path:
    """Eight good videos, four of them in a subfolder."""
    folder = tmp_path / "videos"
    (folder / "more").mkdir(parents=True)
    clips = sorted(dataset.parent.glob("*.mp4"))
    for number in range(8):
        place = folder / "more" if number % 2 else folder
        shutil.copy(clips[number % len(clips)], place / f"clip-{number}.mp4")
    return folder


def spoil(file: Path) -> Path:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    return file


def in_split(folder: Path, split: str, place: int = 0) -> Path:
    video = VideoFolder(folder, "what?").examples(split, 8)[place].video  # type: ignore[arg-type]
    assert video is not None
    return video


@pytest.mark.parametrize("split", SPLITS)
def test_a_bad_clip_of_any_split_ends_a_search_before_its_first_trial(
    invoke: Invoke, qwen: Path, videos: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    bad = spoil(in_split(videos, split))
    monkeypatch.setattr("vidsieve.harness.model_loading.load", lambda *given: pytest.fail("a model was loaded"))
    result = invoke(*TUNE, *WORK, "--model", qwen, "--videos", videos)
    assert result.exit_code == 1
    assert str(bad) in result.stderr and "--skip-bad" in result.stderr
    assert "open clips 0/" in result.stdout


def test_a_search_goes_on_without_the_bad_clip_and_says_which(
    invoke: Invoke, qwen: Path, videos: Path, fake_time: None
) -> None:
    bad = spoil(in_split(videos, "heldout"))
    words = (*WORK, "--model", qwen, "--videos", videos, "--skip-bad")
    result = invoke(*TUNE, *words)
    assert result.exit_code == 0, result.stderr
    assert f"skipped: {bad}" in result.stderr
    provenance = vidsieve.load_policy(Path("policy.yaml")).provenance
    name = bad.relative_to(videos).as_posix()
    assert provenance["data"]["task"]["skipped"] == name
    assert name not in provenance["heldout_ids"]
    told = [line for line in result.stdout.splitlines() if line.strip().startswith("vidsieve run ")]
    assert told and "--skip-bad" in told[0].split()
    for more in (("--skip-bad",), ()):
        again = invoke("eval", *WORK, "--model", qwen, "--videos", videos, "--policy", "policy.yaml", "--json", *more)
        assert json.loads(again.stdout)["stored"] is not None, "the stored examples are there, bad clip or not"


class Heard(Listener):
    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []
        self.sentences: list[str] = []

    def step(self, what: str, done: int, total: int) -> None:
        self.steps.append((what, done, total))

    def notice(self, text: str) -> None:
        self.sentences.append(text)


def test_the_library_refuses_and_skips_too_and_shows_its_progress(qwen: Path, videos: Path, fake_time: None) -> None:
    bad = [spoil(in_split(videos, split)) for split in SPLITS]
    settings = {"videos": videos, "speedup": 1.3, "frames": 4, "max_new_tokens": 1, "trials": 1, "examples": 2}
    common = {"policies": ["vidcom2"], "in_process": True, "heldout_examples": 3, **settings}
    with pytest.raises(MediaError) as caught:
        vidsieve.tune(str(qwen), **common)
    assert all(str(file) in str(caught.value) for file in bad)
    assert "`skip_bad`" in str(caught.value) and "--" not in str(caught.value)
    heard = Heard()
    result = vidsieve.tune(str(qwen), skip_bad=True, listener=heard, **common)
    assert sum(sentence.startswith("skipped: ") for sentence in heard.sentences) == 3
    opened = [step for step in heard.steps if step[0] == "open clips"]
    assert opened[0][1] == 0 and opened[-1][1] == opened[-1][2]
    assert result.policy.name == "vidcom2"


def test_eval_names_all_bad_files_at_once_also_in_subfolders(
    invoke: Invoke, qwen: Path, videos: Path, fake_time: None
) -> None:
    bad = [spoil(videos / "clip-2.mp4"), videos / "more" / "text.mp4", videos / "link.mp4"]
    bad[1].write_text("this is no video")
    bad[2].symlink_to(videos / "nowhere.mp4")
    words = ("eval", *WORK, "--model", qwen, "--policy", "vidcom2", "--videos", videos)
    result = invoke(*words)
    assert result.exit_code == 1
    assert all(str(file) in result.stderr for file in bad)
    assert "3 of 10 videos" in result.stderr
    result = invoke(*words, "--skip-bad", "--json")
    assert result.stderr.count("skipped: ") == 3
    assert json.loads(result.stdout)["accuracy"]["examples"] == 7


def test_a_labelled_video_that_is_not_there_is_skipped_only_when_asked(dataset: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in dataset.read_text().splitlines()]
    gone = rows[0]["video"]
    for row in rows:
        row["video"] = str(dataset.parent / row["video"]) if row["video"] != gone else "gone.mp4"
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(VidsieveError, match="no such file"):
        LabelledData(file)
    assert len(LabelledData(file, missing_ok=True).all) == len(rows)


def test_what_is_wrong_with_the_checkpoint_is_no_fault_of_a_clip(
    qwen: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise ModelError("no tokenizer")

    monkeypatch.setattr("vidsieve.harness.model_loading.processor_of", broken)
    setup = Setup(model=str(qwen), videos=str(videos), skip_bad=True)
    task, opener = VideoFolder(videos, "what?"), clip_opener(setup, choose(str(qwen), None, default()))
    with pytest.raises(ModelError, match="no tokenizer"):
        readable(task, lambda task: task.examples("search", 2), opener, skip_bad=True)


def test_what_is_left_stays_in_the_split_it_was_in(videos: Path) -> None:
    whole = VideoFolder(videos, "what?")
    left = ReadableTask(whole, {"clip-2.mp4": "torn", "more/clip-3.mp4": "torn"})
    for split in SPLITS:
        names = [example.id for example in whole.examples(split, 8) if example.group not in left.skipped]
        assert [example.id for example in left.examples(split, 8)] == names
        assert [example.id for example in left.examples(split, 1)] == names[:1]
    assert left.describe()["sha256"] == whole.describe()["sha256"]


def test_frames_are_told_as_taken(invoke: Invoke, qwen: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "five.mp4", torch.randint(0, 255, (5, 3, 64, 64), dtype=torch.uint8), 4)
    line = invoke("run", "--model", qwen, *WORK, video, "what?").stdout.splitlines()[0]
    assert ", 5 frames (of 8 asked)" in line
    line = invoke("run", "--model", qwen, "--fps", 2, "--max-new-tokens", 2, video, "what?").stdout.splitlines()[0]
    assert ", 2 frames (2.0 a second)" in line


def test_the_ends_are_those_of_the_frames_that_will_be_taken(dataset: Path) -> None:
    video = sorted(dataset.parent.glob("*.mp4"))[0]
    whole, ends = read_video(video, frames=7), read_ends(video, frames=7)
    assert torch.equal(ends.frames, whole.frames[[0, -1]])
    assert ends.frame_index.tolist() == whole.frame_index[[0, -1]].tolist()
    assert len(read_ends(video, frames=1).frames) == 1


def test_a_size_that_is_refused_names_its_file(invoke: Invoke, qwen: Path, videos: Path) -> None:
    thin = write_video(videos / "thin.mp4", torch.zeros(4, 3, 2, 500, dtype=torch.uint8), 4)
    for words in (("run", thin, "what?"), ("eval", "--videos", videos)):
        result = invoke(*words, *WORK, "--model", qwen)
        assert result.exit_code == 1
        assert str(thin) in result.stderr and "This is a bug" not in result.stderr


@pytest.mark.parametrize("name", ["https://example.com/a.mp4", "file:///tmp/a.mp4", "s3://bucket/a.mp4", "", "  "])
def test_addresses_and_empty_names_get_a_sentence_of_their_own(
    invoke: Invoke, qwen: Path, tmp_path: Path, name: str
) -> None:
    word = "is an address" if name.strip() else "the name is empty"
    for words in (
        ("run", "--model", qwen, name, "what?"),
        ("run", "--model", name, tmp_path / "a.mp4", "what?"),
        ("run", "--model", "qwen2-vl", "--checkpoint", name, tmp_path / "a.mp4", "what?"),
        ("run", "--model", qwen, "--policy", name, tmp_path / "a.mp4", "what?"),
        ("eval", "--model", qwen, "--videos", name),
        ("eval", "--model", qwen, "--data", name),
    ):
        result = invoke(*words)
        assert result.exit_code in (1, 2), words
        assert word in result.stderr, (words, result.stderr)
    for call in (read_video, vidsieve.load_policy):
        with pytest.raises(VidsieveError, match=word):
            call(name)
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({"video": name, "question": "what?", "answer": "x"}))
    with pytest.raises(VidsieveError, match=word if name.strip() else "video must be text"):
        LabelledData(file)


def test_the_address_of_a_models_page_is_answered_with_its_hub_id() -> None:
    with pytest.raises(UsageError, match=r"Give its hub id, Qwen/Qwen2-VL-2B-Instruct\.$"):
        choose("https://huggingface.co/Qwen/Qwen2-VL-2B-Instruct/tree/main", None, default())
