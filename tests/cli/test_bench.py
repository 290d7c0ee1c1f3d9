"""`vidsieve bench`."""

import json
from pathlib import Path

import pytest
from checkpoint_fixtures import Invoke

from vidsieve.harness.benchmark.request_bench import RequestBench

SMALL = ["--frames", 8, "--max-new-tokens", 2, "--repeats", 1, "--policies", "vidcom2"]


def test_a_result_is_printed_written_drawn_shown_again_and_compared(invoke: Invoke, qwen: Path, tmp_path: Path) -> None:
    files = ["--out", "result.json", "--picture", "bars.svg"]
    first = invoke("bench", "--model", qwen, "--resolution", "64x64", *SMALL, *files)
    assert first.exit_code == 0
    for word in ("model: qwen2-vl-tiny", "synthetic frames of 64 x 64", "TTFT ms", "parts ÷ whole", "KV MiB"):
        assert word in first.stdout
    assert "<svg" in (tmp_path / "bars.svg").read_text()
    again = invoke("bench", "result.json", "--compare", "result.json")
    assert again.stdout.startswith(first.stdout)
    assert "cell by cell" in again.stdout
    told = json.loads(invoke("bench", "result.json", "--json").stdout)
    assert told == json.loads((tmp_path / "result.json").read_text())


def test_a_video_file_is_decoded_in_every_request(invoke: Invoke, qwen: Path, dataset: Path) -> None:
    clip = sorted(dataset.parent.glob("*.mp4"))[0]
    told = json.loads(invoke("bench", "--model", qwen, "--video", clip, *SMALL, "--json").stdout)
    assert told["video"] == str(clip)
    assert told["workloads"][0]["cells"][0]["parts_ms"]["video_ms"] > 0


def test_ctrl_c_prints_and_writes_what_there_is(
    invoke: Invoke, qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed, calls = RequestBench.timed, []

    def stopped(self: RequestBench, *args: object) -> object:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return timed(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(RequestBench, "timed", stopped)
    words = ["--resolution", "64x64", *SMALL, "--repeats", 2, "--out", "part.json"]
    result = invoke("bench", "--model", qwen, *words)
    assert result.exit_code == 130
    assert "INCOMPLETE" in result.stdout
    assert "vidcom2" in result.stdout
    assert json.loads((tmp_path / "part.json").read_text())["complete"] is False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--random-weights", "qwen2-vl-7"], "Did you mean 'qwen2-vl-7b'"),
        (["--model", "qwen2-vl-tiny", "--layers", "2"], "--layers: cuts a model with random weights"),
        (["--model", "qwen2-vl-tiny", "--policies", "vidcom"], "Did you mean 'vidcom2'"),
        (["--model", "qwen2-vl-tiny", "--video", "no.mp4"], "there is no such file"),
        (["--model", "qwen2-vl-tiny", "--picture", "a.gif"], "must end in .svg or .png"),
        (["--compare", "none.json", "--model", "qwen2-vl-tiny"], "none.json: cannot be read"),
        (["none.json", "--frames", "8"], "--frames: belongs to a measurement"),
        ([], "--model: is missing"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(invoke: Invoke, words: list[str], said: str) -> None:
    result = invoke("bench", *words)
    assert result.exit_code in (1, 2)
    assert said in result.stderr
