"""Every command of the documents is carried out: whole where that is quick, else up to where a model would be loaded.

Two tutorials are carried out whole, on the smallest model, with less to search and a made-up clock.
What the documents ask of other programs is told apart here, so that nothing stands there that nobody looked at.
"""

import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import yaml
from checkpoint_fixtures import Invoke
from doc_pages import ROOT, blocks, commands, pages, shell_lines, text

from vidsieve import load_policy
from vidsieve.harness import model_loading, session
from vidsieve.harness.benchmark import random_weights

WHOLE = ("ls", "show", "check", "serve-check")
TUTORIALS = ("docs/tutorials/01-run-a-policy.md", "docs/tutorials/03-tune-on-your-videos.md")
BENCHMARKS = {"MVBench", "Video-MME", "MLVU", "LongVideoBench"}
"""Folders that nobody has here; test_benchmark_folders.py reads small ones."""
LESS = {"--trials": "1", "--examples": "2", "--latency-ms": "60", "--speedup": "1.1"}
"""What a tutorial's search is given instead; the clock of these tests is made up, and knows a request of 100 ms."""
OTHERS = (
    *("accelerate", "cd", "curl", "lmms-eval", "mkdir", "mypy", "optuna-dashboard", "ruff", "source", "ssh", "uvicorn"),
    "vllm",
)
"""Programs that the documents name and that are not run here."""


class Reached(BaseException):
    """Raised in place of loading a model."""


@pytest.fixture
def at_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched or loaded: who gets there has passed every check of its options, names, policies and data."""

    def fetched(*_: object, **__: object) -> None:
        raise Reached

    for module in (session, model_loading):
        monkeypatch.setattr(module, "fetched", fetched)
    monkeypatch.setattr(random_weights, "with_random_weights", fetched)
    monkeypatch.setitem(sys.modules, "gradio", MagicMock())


def _tuned(name: str) -> str:
    """A policy file with the provenance that `vidsieve tune` writes, as far as other commands read it."""
    found = {"model": "qwen2-vl", "checkpoint": "qwen2-vl-tiny", "bundled": "yes", "frames": "16"}
    provenance = {"measured_on": found, "target": {"speedup": 2.0}, "data": {"task": {"name": "bundled-static"}}}
    return yaml.safe_dump(load_policy("vidcom2").to_dict() | {"name": name, "provenance": provenance}, sort_keys=False)


@pytest.fixture
def furnished(tmp_path: Path, invoke: Invoke) -> Path:
    """The folder that commands run in, with the files that pages take for granted."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for clip in (tmp_path / "clip.mp4", tmp_path / "holiday.mp4", clips / "static-heldout-0-00000.mp4"):
        clip.write_bytes(b"never read")
    line = '{"video": "%s", "question": "what moves ?", "options": ["a", "b"], "answer": "a"}\n'
    (tmp_path / "questions.jsonl").write_text(line % "clip.mp4")
    (clips / "examples.jsonl").write_text(line % "static-heldout-0-00000.mp4")
    (tmp_path / "my-policies").mkdir()
    for name in ("policy", "fast", "faster", "my-policy", "my-policies/mine"):
        (tmp_path / f"{name}.yaml").write_text(_tuned(Path(name).name))
    _write_blocks("docs/tutorials/02-write-a-stage.md", tmp_path)
    return tmp_path


def _write_blocks(page: str, folder: Path) -> None:
    """Write a page's files, and its policies under their names."""
    for block in blocks(page):
        name = block.file
        if name is None and block.language == "yaml" and "wrong" not in block.words:
            called = re.search(r"^name: (\S+)$", block.text, re.MULTILINE)
            name = f"{called[1]}.yaml" if called else None
        if name is not None and not (folder / name).exists():
            (folder / name).write_text(block.text, encoding="utf-8")


def _words(line: str) -> list[str]:
    words = shlex.split(line, comments=True)
    return words[1:] if words[0] == "vidsieve" else words


def _reaches_the_model(invoke: Invoke, words: list[str]) -> str | None:
    """What a command says instead of loading a model; None where it would load one."""
    try:
        return invoke(*words).output
    except Reached:
        return None


@pytest.mark.parametrize("page", [page for page in pages() if commands(page)])
def test_the_commands_of_a_page_are_carried_out(
    page: str, furnished: Path, invoke: Invoke, at_the_model: None, fresh_registry: object
) -> None:
    _write_blocks(page, furnished)
    for where, line in commands(page):
        words = _words(line)
        if words[0] in WHOLE:
            words = ["qwen2-vl" if word.startswith("Qwen/") else word for word in words]
            done = invoke(*words)
            assert done.exit_code == 0, f"{where}: {line}: {done.stderr}"
            continue
        if {"--storage", "--compare"} & set(words) or not BENCHMARKS.isdisjoint(words):
            # a server, results or a benchmark's folder would have to be there; test_commands.py knows the options
            continue
        words += ["--force"] if words[0] == "tune" and "--confirm" not in words else []
        assert _reaches_the_model(invoke, words) is None, f"{where}: {line}"


def _less(words: list[str]) -> list[str]:
    """The command with less to do, on the smallest model."""
    kept = ["qwen2-vl-tiny" if word == "qwen2-vl" else word for word in words]
    for option, value in LESS.items():
        if option in kept:
            kept[kept.index(option) + 1] = value
    if kept[0] in ("tune", "eval") and "--examples" not in kept:
        kept += ["--examples", LESS["--examples"]]
    if kept[0] == "tune":
        kept += ["--in-process"]
        kept += (
            [] if "--confirm" in kept else ["--policies", "vidcom2", *([] if "--trials" in kept else ["--trials", "1"])]
        )
    return kept


@pytest.mark.parametrize("page", TUTORIALS)
def test_the_tutorials_do_what_they_say(
    page: str, tmp_path: Path, invoke: Invoke, fake_time: None, fresh_registry: object
) -> None:
    from doc_model import bundled_clip

    bundled_clip()
    _write_blocks(page, tmp_path)
    for block in blocks(page):
        if block.file and block.language == "python":
            exec(compile(block.text, f"{page}:{block.line}", "exec"), {})
    for where, line in commands(page):
        words = _less(_words(line))
        if any(word.startswith("Qwen/") for word in words):
            continue  # a model of the reader's own
        done = invoke(*words)
        assert done.exit_code == 0, f"{where}: {words}: {done.output}"


def _lines() -> Iterator[tuple[str, str]]:
    for page in pages():
        yield from shell_lines(page)


EXTRAS = tomllib.loads(text("pyproject.toml"))["project"]["optional-dependencies"]


@pytest.mark.parametrize(("where", "line"), list(_lines()), ids=[f"{where} {line[:40]}" for where, line in _lines()])
def test_what_is_asked_of_other_programs_can_be_asked(where: str, line: str) -> None:
    words = [word for word in shlex.split(line, comments=True) if "=" not in word or word.startswith("-")]
    if not words or words[0] in ("vidsieve", "tune", *OTHERS, "lint-imports", ".ci/run"):
        return
    if words[0] == "pip":
        wanted = re.search(r"\.\[([\w,]+)\]", line)
        assert wanted is None or set(wanted[1].split(",")) <= set(EXTRAS), f"{where}: no such extra: {line}"
    elif words[0] == "pytest":
        paths = [word for word in words[1:] if word.startswith("tests/") and "my_" not in word]
        assert all((ROOT / path).exists() for path in paths), f"{where}: {line}"
    elif words[0] == "mkdocs":
        assert words[1] in ("serve", "build"), f"{where}: {line}"
    elif words[0] == "python" and words[1].startswith("scripts/"):
        source = (ROOT / words[1]).read_text(encoding="utf-8")
        missing = [word for word in words[2:] if word.startswith("--") and f'"{word}"' not in source]
        assert not missing, f"{where}: {words[1]} has no option {missing}"
    else:
        named = {block.file for block in blocks(where.rpartition(":")[0])}
        assert words[0] == "python" and words[1] in {*named, "-m"}, f"{where}: nobody looked at: {line}"
