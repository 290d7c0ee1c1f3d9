"""`vidsieve view`."""

import json
from pathlib import Path

import pytest
from checkpoint_fixtures import Invoke
from report.reading import Reading

QUESTION = "what color is the disc ?"
LAYER_99 = """format: 1
name: too-deep
retention_ratio: 0.9
summary: Prunes at a layer that is not there.
stages:
  - {use: fastv.prune, after: 99}
"""


@pytest.fixture
def clip(dataset: Path) -> Path:
    return sorted(dataset.parent.glob("*.mp4"))[0]


def test_policies_stand_side_by_side_and_what_cannot_be_seen_is_said(
    invoke: Invoke, qwen: Path, clip: Path, tmp_path: Path
) -> None:
    policies = ["--policy", "vidcom2", "--policy", "none", "--policy", "pyramiddrop"]
    words = ["view", clip, "--model", qwen, *policies, "--retention", 0.5, "--max-new-tokens", 3]
    result = invoke(*words, "--question", QUESTION)
    assert result.exit_code == 0, result.output
    page = Reading((tmp_path / "view.html").read_text(encoding="utf-8"))
    said = "policy 'none': keeps every visual token of the prompt"
    assert said in result.stdout and said in page.text
    assert "vidcom2: 144 of 288 visual tokens in the prompt (50.0%)" in result.stdout
    for text in (clip.name, QUESTION, "pyramiddrop: inside the language model", "144 of 288"):
        assert text in page.text
    assert str(clip.parent) not in page.text
    again = invoke(*words)
    assert again.exit_code == 2
    assert "view.html: exists already. Give --force" in again.stderr


def test_json_tells_counts(invoke: Invoke, llava: Path, clip: Path) -> None:
    words = ["view", clip, "--model", llava, "--frames", 4, "--policy", "dycoke", "--max-new-tokens", 3]
    told = json.loads(invoke(*words, "--out", "kept.png", "--json").stdout)
    (policy,) = told["policies"]
    assert told["out"] == "kept.png"
    assert sum(policy["per_frame"]) == policy["prompt_tokens"] < policy["baseline_tokens"]
    assert policy["kv_ratio"] < 1
    assert Path("kept.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "kept.gif"], "error: --out kept.gif: must end in .html, .png or .mp4, got '.gif'."),
        (["--policy", "vidcm2"], "no policy named 'vidcm2'. Did you mean 'vidcom2'?"),
        (["--policy", "vidcom2", "--policy", "dycoke", "--set", "top-k.keep_ratio=0.5"], "goes with one --policy"),
        (["--question", " "], "error: --question: is empty"),
        (["--rung", "cuts"], "error: --rung: chooses what to look at, but a video was given"),
        (["--retention", 2], "--retention"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_a_wrong_request_is_one_sentence(
    invoke: Invoke, qwen: Path, clip: Path, words: list[object], said: str
) -> None:
    result = invoke("view", clip, "--model", qwen, *words)
    assert result.exit_code != 0
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(Path().glob("*.html"))


def test_a_video_that_cannot_be_decoded_is_named(invoke: Invoke, qwen: Path, tmp_path: Path) -> None:
    bad = tmp_path / "notes.mp4"
    bad.write_text("no video", encoding="utf-8")
    result = invoke("view", bad, "--model", qwen)
    assert result.exit_code == 1
    assert f"error: {bad}: not a readable video" in result.stderr
    assert not (tmp_path / "view.html").exists()


def test_a_policy_that_cannot_run_on_the_model_is_one_sentence(invoke: Invoke, qwen: Path, clip: Path) -> None:
    Path("deep.yaml").write_text(LAYER_99, encoding="utf-8")
    result = invoke("view", clip, "--model", qwen, "--policy", "deep.yaml")
    assert result.exit_code == 1
    assert "fastv.prune: after [99] asked" in result.stderr.splitlines()[-1]
    assert not Path("view.html").exists()
