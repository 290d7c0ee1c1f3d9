"""`vidsieve run`."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from checkpoint_fixtures import Invoke

from vidsieve import load_policy
from vidsieve.media import write_video

QUESTION = "what color is the disc ?"


@pytest.fixture
def clip(dataset: Path) -> Path:
    return sorted(dataset.parent.glob("*.mp4"))[0]


def test_a_run_tells_both_answers_tokens_and_milliseconds(invoke: Invoke, qwen: Path, clip: Path) -> None:
    words = ["run", "--model", qwen, "--max-new-tokens", 3, "--retention", 0.5, clip, QUESTION]
    told = json.loads(invoke(*words, "--json").stdout)
    assert told["uncompressed"]["visual_tokens"] == 288
    assert told["compressed"]["visual_tokens"] == told["report"]["kept_tokens"] == 144
    assert told["uncompressed"]["ttft_ms"] > 0
    assert told["question"] == QUESTION
    plain = invoke(*words)
    assert plain.stdout.splitlines()[0].startswith("workload: ")
    for word in ("16 frames", "device: cpu", f"data: {clip}"):
        assert word in plain.stdout.splitlines()[0]
    assert "144 visual tokens" in plain.stdout


def test_keeping_everything_gives_the_same_answer(invoke: Invoke, llava: Path, clip: Path) -> None:
    words = [
        "run",
        "--model",
        llava,
        "--frames",
        8,
        "--max-new-tokens",
        3,
        "--policy",
        "none",
        clip,
        QUESTION,
        "--json",
    ]
    told = json.loads(invoke(*words).stdout)
    assert told["same_answer"]
    assert told["compressed"]["visual_tokens"] == told["uncompressed"]["visual_tokens"]


def test_without_a_video_the_bundled_task_is_asked(invoke: Invoke, bundled: None) -> None:
    result = invoke("run", "--model", "qwen2-vl")
    assert result.exit_code == 0
    assert "stands for the bundled qwen2-vl-mini" in result.stderr
    assert "label: " in result.stdout


def test_without_a_video_the_data_is_asked(invoke: Invoke, qwen: Path, dataset: Path) -> None:
    result = invoke("run", "--model", qwen, "--data", dataset, "--max-new-tokens", 2)
    assert result.exit_code == 0
    assert "label: " in result.stdout


def test_words_the_bundled_model_does_not_know_are_warned_about(invoke: Invoke, bundled: None, clip: Path) -> None:
    result = invoke("run", "--model", "qwen2-vl-tiny", clip, "Summarise the plot?")
    assert result.exit_code == 0
    assert "'plot', 'summarise'" in result.stderr


def test_settings_reach_the_policy(invoke: Invoke, qwen: Path, clip: Path) -> None:
    words = ["--set", "top-k.keep_ratio=0.1", "--set", "vidcom2.frame-budget.temperature=1e-1"]
    told = json.loads(invoke("run", "--model", qwen, "--max-new-tokens", 2, *words, clip, QUESTION, "--json").stdout)
    assert told["compressed"]["visual_tokens"] == 28


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--retention", "25"], "0.25 is a quarter"),
        (["--retention", "0"], "(0, 1]"),
        (["--set", "nonsense"], "LABEL.SETTING=VALUE"),
        (["--set", "top-q.keep_ratio=0.5"], "Did you mean 'top-k'"),
        (["--set", "top-k.keep=0.5"], "keep_ratio"),
        (["--set", "top-k.keep_ratio=0.5", "--set", "top-k.keep_ratio=0.6"], "twice"),
        (["--set", "top-k.keep_ratio=lots"], "keep_ratio"),
        (["--policy", "vidcom"], "Did you mean 'vidcom2'"),
        (["--data", "x.jsonl"], "a video was given"),
        (["--rung", "static"], "a video was given"),
    ],
)
def test_options_of_run_that_make_no_sense_are_usage_errors(
    invoke: Invoke, qwen: Path, clip: Path, words: list[str], sentence: str
) -> None:
    result = invoke("run", "--model", qwen, *words, clip, QUESTION)
    assert result.exit_code == 2
    assert sentence in result.stderr


def test_a_video_needs_a_question(invoke: Invoke, qwen: Path, clip: Path) -> None:
    result = invoke("run", "--model", qwen, clip)
    assert result.exit_code == 2
    assert "question" in result.stderr


def test_a_ratio_out_of_reach_gives_the_range(invoke: Invoke, qwen: Path, clip: Path) -> None:
    words = ["--policy", "dycoke", "--retention", 0.01]
    result = invoke("run", "--model", qwen, *words, clip, QUESTION)
    assert result.exit_code == 1
    assert "reaches" in result.stderr


def make_bad_videos(folder: Path, clip: Path) -> None:
    (folder / "truncated.mp4").write_bytes(clip.read_bytes()[: clip.stat().st_size // 3])
    (folder / "text.mp4").write_text("this is no video")
    (folder / "empty.mp4").write_bytes(b"")
    with av.open(str(folder / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())


@pytest.mark.parametrize("name", ["missing.mp4", "truncated.mp4", "text.mp4", "empty.mp4", "audio.mp4", "."])
def test_a_video_that_cannot_be_read_is_one_clear_error(
    invoke: Invoke, qwen: Path, clip: Path, tmp_path: Path, name: str
) -> None:
    make_bad_videos(tmp_path, clip)
    result = invoke("run", "--model", qwen, tmp_path / name, QUESTION)
    assert result.exit_code == 1
    assert str(tmp_path / name) in result.stderr
    assert "This is a bug" not in result.stderr


def test_one_frame_is_enough(invoke: Invoke, qwen: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "one.mp4", torch.full((1, 3, 96, 96), 90, dtype=torch.uint8), 4)
    result = invoke("run", "--model", qwen, "--max-new-tokens", 2, video, QUESTION, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["uncompressed"]["visual_tokens"] == 36


def test_a_stage_that_raises_is_named_and_the_model_survives(
    invoke: Invoke, qwen: Path, clip: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(
        "from vidsieve import Keep, Stage, VideoTokens, hookimpl\n"
        "class Bad(Stage):\n"
        "    @hookimpl\n"
        "    def select_tokens(self, tokens: VideoTokens) -> Keep:\n"
        "        raise RuntimeError('no luck')\n"
        "@hookimpl\n"
        "def register_stages(register):\n"
        "    register('cli-test-bad', Bad)\n"
    )
    (tmp_path / "bad.yaml").write_text("format: 1\nname: bad\nretention_ratio: 0.5\nstages:\n- use: cli-test-bad\n")
    words = ["--policy", tmp_path / "bad.yaml", "--plugin", tmp_path / "bad.py"]
    result = invoke("run", "--model", qwen, *words, clip, QUESTION)
    assert result.exit_code == 1
    assert "'bad'" in result.stderr and "cli-test-bad" in result.stderr and "no luck" in result.stderr


def test_a_policy_measured_elsewhere_is_warned_about(invoke: Invoke, qwen: Path, clip: Path, tmp_path: Path) -> None:
    policy = load_policy("vidcom2")
    text = policy.to_yaml() + "provenance:\n  measured_on: {model: qwen2-vl, checkpoint: other, frames: '32'}\n"
    (tmp_path / "p.yaml").write_text(text)
    words = ["--policy", tmp_path / "p.yaml", "--frames", 8, "--max-new-tokens", 2]
    result = invoke("run", "--model", qwen, *words, clip, QUESTION)
    assert result.exit_code == 0
    assert "frames 8 (measured on 32)" in result.stderr
    assert "checkpoint qwen2-vl-tiny (measured on other)" in result.stderr
