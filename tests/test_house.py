"""The house rules a reader relies on: small files, small bodies, one public class a file where that is promised."""

import ast
import importlib
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation

import vidsieve
from vidsieve.framework import plans

PACKAGE = Path(vidsieve.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES_A_FILE = 500
MOST_LINES_A_FUNCTION = 60


def names(files: list[Path]) -> list[str]:
    return [str(file.relative_to(PACKAGE)) for file in files]


@pytest.mark.parametrize("file", FILES, ids=names(FILES))
def test_files_and_functions_stay_small(file: Path) -> None:
    text = file.read_text()
    assert text.count("\n") <= MOST_LINES_A_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            size = node.end_lineno - node.lineno + 1
            assert size <= MOST_LINES_A_FUNCTION, f"{node.name} has {size} lines; split it by idea"


FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
# an integration names the options of its partner
LIBRARY = [file for file in FILES if file.relative_to(PACKAGE).parts[0] not in ("cli", "integrations")]


@pytest.mark.parametrize("file", LIBRARY, ids=names(LIBRARY))
def test_the_library_names_its_own_settings_and_no_option_of_the_command_line(file: Path) -> None:
    constants = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)]
    told = {node.lineno: FLAG.findall(node.value) for node in constants if isinstance(node.value, str)}
    assert not {line: flags for line, flags in told.items() if flags}


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (plans.tokens_to_keep, ("8", 0.5)),
        (plans.apportion, (torch.ones(2, 2), 4, torch.ones(2, dtype=torch.int64))),
        (plans._proportion, (torch.ones(3), torch.ones(2, dtype=torch.bool))),
    ],
    ids=["a type", "too many axes", "one axis of two lengths"],
)
def test_what_contradicts_an_annotation_is_noticed_by_every_test(function: Callable[..., object], given: tuple) -> None:
    with pytest.raises(BeartypeCallHintViolation):
        function(*given)


def imported(file: Path) -> set[str]:
    """Modules of the package that a file names in an import, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_no_two_files_share_a_name() -> None:
    counts = Counter(file.name for file in FILES if file.name != "__init__.py" and file.parent.name != "families")
    assert [name for name, count in counts.items() if count > 1] == []


HARNESS = [file for file in FILES if file.relative_to(PACKAGE).parts[0] == "harness"]


@pytest.mark.parametrize("file", HARNESS, ids=names(HARNESS))
def test_the_harness_is_used_from_python_and_imports_no_typer(file: Path) -> None:
    assert not {module for module in imported(file) if module.partition(".")[0] in ("typer", "click")}


STAGES = sorted((PACKAGE / "policies").glob("[a-z]*.py"))


@pytest.mark.parametrize("file", STAGES, ids=names(STAGES))
def test_a_policies_file_holds_one_method(file: Path) -> None:
    found: list[str] = []
    importlib.import_module(f"vidsieve.policies.{file.stem}").register_stages(lambda name, stage: found.append(name))
    assert len({name.partition(".")[0] for name in found}) == 1
