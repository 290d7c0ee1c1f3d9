"""The headline picture: what it shows follows from the stored cells."""

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from doc_pages import ROOT

DATA = ROOT / "scripts" / "data" / "policy_table.json"
PICTURE = ROOT / "docs" / "pictures" / "policies.svg"


@pytest.fixture(scope="module")
def drawing() -> Iterator[Any]:
    """The module that draws."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from policy_cells import picture

        yield picture
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def texts(svg: bytes) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg.decode("utf-8"))


def cells_of(rows: dict[tuple[str, float | None], tuple[str, float]]) -> dict[str, Any]:
    """Policy and ratio → what one clip's answers were on every rung, and the TTFT ratio."""
    cells: dict[str, Any] = {}
    for (policy, ratio), (clip, ttft) in rows.items():
        shown = "own" if ratio is None else f"{ratio:g}"
        place = {"model": "m", "policy": policy, "ratio": ratio}
        for rung in ("static", "jitter", "cuts"):
            cells[f"m {policy} {shown} {rung}"] = {**place, "what": rung, "clips": [clip]}
        cells[f"m {policy} {shown} ttft"] = {**place, "what": "ttft", "ttft_ratio": {"value": ttft}}
    return cells


def test_the_committed_picture_says_what_the_stored_cells_give(drawing: Any) -> None:
    stored = json.loads(DATA.read_text(encoding="utf-8"))
    drawn = drawing.picture(stored["cells"], [name for name in drawing.MODEL_NAMES if name in stored["measured_on"]])
    assert texts(PICTURE.read_bytes()) == texts(drawn)


def test_what_is_beaten_in_both_is_not_named(drawing: Any) -> None:
    rows = {
        ("none", None): ("1111", 1.0),
        ("vidcom2", 0.25): ("1110", 0.4),
        ("evs", 0.25): ("1100", 0.5),
        ("random", 0.1): ("1000", 0.3),
    }
    named = texts(drawing.picture(cells_of(rows), ["m"]))
    assert {"vidcom2 25 %", "random 10 %"} <= set(named)
    assert "evs 25 %" not in named


def test_a_row_that_lacks_a_rung_or_its_time_is_no_point(drawing: Any) -> None:
    cells = cells_of({("vidcom2", 0.5): ("11", 0.6), ("evs", 0.5): ("11", 0.6), ("tome", 0.5): ("11", 0.6)})
    del cells["m evs 0.5 jitter"], cells["m tome 0.5 ttft"]
    assert [point.policy for point in drawing.points_of(cells, "m")] == ["vidcom2"]


def test_the_same_cells_give_the_same_bytes(drawing: Any) -> None:
    cells = cells_of({("vidcom2", 0.5): ("11", 0.6)})
    assert drawing.picture(cells, ["m"]) == drawing.picture(cells, ["m"])
