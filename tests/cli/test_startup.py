"""What must answer at once: help, lists and usage errors import nothing heavy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "av", "optuna", "matplotlib", "numpy")
PROGRAM = """
import json, sys
from vidsieve.cli import {entry}
sys.argv = ["vidsieve", *json.loads(sys.argv[1])]
try:
    {entry}()
except SystemExit as end:
    code = end.code or 0
loaded = [name for name in {heavy!r} if name in sys.modules]
print(json.dumps({{"code": code, "loaded": loaded}}))
"""


def start(*words: str, entry: str = "main", cwd: Path | None = None) -> tuple[dict[str, object], str]:
    """Run the console script's function in a fresh interpreter: ({code, loaded}, everything printed)."""
    program = PROGRAM.format(entry=entry, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(words)], capture_output=True, text=True, cwd=cwd, timeout=120
    )
    assert "Traceback" not in done.stderr, done.stderr
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]), "\n".join(lines[:-1]) + done.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--help",), 0),
        (("tune", "--help"), 0),
        (("run", "--help"), 0),
        (("ls",), 0),
        (("ls", "policies", "--json"), 0),
        (("ls", "models"), 0),
        (("tune", "--model", "qwen2-vl"), 2),
        (("tune", "--model", "qwen2-vl", "--latency-ms", "5", "--speedup", "2"), 2),
        (("tune", "--model", "qwen2-v", "--latency-ms", "5"), 2),
        (("run", "--model", "qwen2-vl", "--frames", "4", "--fps", "2"), 2),
        (("view", "--help"), 0),
        (("view", "clip.mp4", "--out", "view.gif"), 2),
        (("tune", "--no-such-option"), 2),
    ],
)
def test_help_lists_and_usage_errors_load_nothing_heavy(words: tuple[str, ...], code: int, tmp_path: Path) -> None:
    done, output = start(*words, cwd=tmp_path)
    assert done == {"code": code, "loaded": []}, output
    assert output.strip()


def test_the_alias_is_vidsieve_tune_and_says_so() -> None:
    done, output = start("--help", entry="tune_alias")
    assert done["code"] == 0
    assert "vidsieve tune" in output
    assert "torchtune" in output


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vidsieve.cli", "--version"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("vidsieve ")
