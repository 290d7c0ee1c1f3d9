"""Every command line in the documents uses verbs and options that exist."""

import shlex
import sys
from typing import Any

import pytest
import typer
from doc_pages import ROOT, commands, pages, text

from vidsieve.cli.app import app

ALL = [(where, line) for page in pages() for where, line in commands(page)]
ROOT_COMMAND = typer.main.get_command(app)


def _options(verb: Any) -> dict[str, Any]:
    return {flag: p for p in verb.params for flag in [*p.opts, *p.secondary_opts] if flag.startswith("-")}


def _takes_value(option: Any) -> bool:
    return not option.is_flag


@pytest.mark.parametrize(("where", "line"), ALL, ids=[f"{where} {line[:40]}" for where, line in ALL])
def test_commands_use_options_that_exist(where: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    words = words[1:] if words[0] == "vidsieve" else words
    verbs = ROOT_COMMAND.commands  # type: ignore[attr-defined]
    assert words[0] in verbs, f"{where}: no verb {words[0]!r}; there are {', '.join(verbs)}"
    verb = verbs[words[0]]
    options, positional, rest = _options(verb), 0, iter(words[1:])
    for word in rest:
        if word.startswith("-"):
            flag = word.split("=")[0]
            assert flag in options or flag in ("--help", "-h"), f"{where}: vidsieve {words[0]} has no option {flag}"
            if "=" not in word and flag in options and _takes_value(options[flag]):
                value = next(rest, None)
                assert value is not None, f"{where}: {flag} takes a value"
                assert not value.startswith("--"), f"{where}: {flag} takes a value, got {value}"
        else:
            positional += 1
    places = [p for p in verb.params if not p.opts[0].startswith("-")]
    assert positional >= sum(p.required for p in places), f"{where}: an argument is missing"
    assert positional <= len(places) or any(p.nargs == -1 for p in places), f"{where}: too many arguments"


def test_the_readme_holds_the_two_commands() -> None:
    readme = text("README.md")
    assert "pip install -c constraints.txt -e . && vidsieve tune --model qwen2-vl --speedup 2\n" in readme
    assert "pip install -c constraints.txt -e '.[dev]' && pytest -n auto --dist loadfile\n" in readme


def test_options_named_in_prose_exist() -> None:
    known = {flag for verb in ROOT_COMMAND.commands.values() for flag in _options(verb)}  # type: ignore[attr-defined]
    known |= {"--help", "--version", "--dist"}  # the last one is pytest's
    others = ("python scripts/", "ruff ", "pip ", "curl ")
    # these are about another program's options too
    foreign = ("docs/how-to/serve-with-vllm.md", "docs/how-to/compare-with-lmms-eval.md")
    for page in (page for page in pages() if page not in foreign):
        lines = [line for line in text(page).splitlines() if not any(other in line for other in others)]
        for word in " ".join(lines).replace("`", " ").split():
            flag = word.strip(".,;:()").split("=")[0]
            if flag.startswith("--") and len(flag) > 2 and flag[2].isalpha():
                assert flag in known, f"{page}: {flag} is no option of any verb"


def test_contributing_is_short() -> None:
    assert len(text("CONTRIBUTING.md").splitlines()) <= 60
    assert sys.version_info >= (3, 11)
    assert (ROOT / "CHANGELOG.md").is_file()
