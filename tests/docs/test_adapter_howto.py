"""The contract class that the adapter how-to shows is complete: laws of each kind pass on it."""

from pathlib import Path
from typing import Any

import pytest
from doc_pages import blocks

PAGE = "docs/how-to/add-a-model-family.md"


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


def test_the_diff_of_the_page_is_the_adapter_as_it_is() -> None:
    diff = next(block.text for block in blocks(PAGE) if "+++ b/" in block.text)
    path = diff.split("+++ b/")[1].splitlines()[0]
    added = [line[1:] for line in diff.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert "\n".join(added) + "\n" == (Path(__file__).parents[2] / path).read_text(encoding="utf-8")
