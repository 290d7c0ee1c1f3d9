"""What the how-tos for a family and for a method show is complete: laws pass on it, and its diffs are of real files."""

import runpy
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from doc_pages import ROOT, blocks

PAGE = "docs/how-to/add-a-model-family.md"
METHOD = "docs/how-to/add-a-method.md"


@pytest.fixture(scope="module")
def kit() -> Any:
    """The class of the page, made from its own block."""
    block = next(block for block in blocks(PAGE) if "AdapterContract" in block.text)
    namespace: dict[str, Any] = {"__name__": "adapter_howto"}
    exec(compile(block.text, PAGE, "exec"), namespace)
    return namespace["TestQwen2VL"]()


def test_the_laws_of_the_page_hold(kit: Any) -> None:
    model = kit.build_model()
    kit.test_half_removed_equals_the_language_model_with_rows_taken_out(model, 2)
    kit.test_images_pass_untouched_beside_videos(model)
    kit.test_returned_ids_hold_the_original_prompt(model)
    kit.test_nothing_of_ours_is_left_when_the_block_ends(model)


def diffs(page: str) -> dict[str, list[str]]:
    """The lines that a page's diffs add, by file."""
    found: dict[str, list[str]] = {}
    for block in blocks(page):
        for part in block.text.split("+++ b/")[1:] if block.language == "diff" else ():
            path, *lines = part.splitlines()
            found[path] = [line[1:] for line in lines if line.startswith("+")]
    return found


@pytest.mark.parametrize("page", [PAGE, METHOD])
def test_the_lines_that_a_diff_adds_stand_in_its_files_in_that_order(page: str) -> None:
    found = diffs(page)
    assert len(found) == 3 and any(path.startswith("tests/") for path in found)
    for path, added in found.items():
        lines = iter((ROOT / path).read_text(encoding="utf-8").splitlines())
        missing = next((line for line in added if line not in lines), None)  # `in` goes on from where it found the last
        assert missing is None, f"{page}: {path} has no line {missing!r} there"


def test_the_methods_test_passes_and_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in blocks(METHOD):
        if block.file:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        shown = runpy.run_path(str(tmp_path / "test_neighbour_change.py"))
        by_hand = shown["test_the_score_is_the_distance_to_the_frame_before"]
        by_hand(1.0, 7.0), by_hand(2.0, 5.0)
        with pytest.raises(AssertionError):
            by_hand(2.0, 7.0)
        contract = shown["TestNeighbourChange"]()
        laws = [name for name in dir(contract) if name.startswith("test_")]
        assert len(laws) > 3
        for law in laws:
            with suppress(pytest.skip.Exception):  # laws of stages that remove tokens
                getattr(contract, law)()
    finally:
        sys.modules.pop("neighbour_change", None)
