"""The table of policies: the page is what is stored, and what is stored is what the models did."""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doc_pages import ROOT, text

from vidsieve import load_policy
from vidsieve.bundled.thresholds import TABLE_RATIOS
from vidsieve.framework import registry
from vidsieve.framework.errors import StageError
from vidsieve.harness.session import open_session
from vidsieve.harness.setup import Setup
from vidsieve.tuner.statistics import wilson_interval

DATA = ROOT / "scripts" / "data" / "policy_table.json"
MODEL = "qwen2-vl-tiny"


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    """The modules of scripts/policy_cells."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from policy_cells import headline, page, store, wanted, worker

        found = {"headline": headline, "page": page, "store": store, "wanted": wanted, "worker": worker}
        yield type("Scripts", (), found)
    finally:
        sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def ward(scripts: Any) -> Any:
    """The bundled model with two batches of questions."""
    return scripts.worker.Ward(open_session(Setup(model=MODEL, rung="cuts"), registry.default()), 18, 0)


def made(policy: str, ratio: float | None, what: str, **found: Any) -> dict[str, Any]:
    return {"key": "k", "model": MODEL, "policy": policy, "ratio": ratio, "what": what, **found}


FACTS = {MODEL: {"device_name": "a CPU", "threads": "1", "dtype": "float32", "torch": "2", "transformers": "5"}}


def test_the_page_and_the_stored_table_follow_from_the_stored_cells(scripts: Any) -> None:
    told = json.loads(DATA.read_text(encoding="utf-8"))
    printed = scripts.page.table_text(told["measured_on"], told["cells"])

    assert DATA.with_suffix(".md").read_text(encoding="utf-8") == printed
    page = text("docs/explanation/policies-measured.md")
    assert scripts.page.quoted(page, printed) == page


def test_the_readme_has_the_headline_of_the_stored_cells(scripts: Any) -> None:
    told = json.loads(DATA.read_text(encoding="utf-8"))
    printed = scripts.headline.headline_text(told["measured_on"], told["cells"])

    assert DATA.with_name("headline.md").read_text(encoding="utf-8") == printed
    readme = text("README.md")
    assert scripts.page.quoted(readme, printed, "headline.md") == readme


def test_the_headline_says_how_many_times_faster_and_what_was_not_run(scripts: Any) -> None:
    cells = {
        f"{MODEL} vidcom2 0.25 static": made("vidcom2", 0.25, "static", clips=["110", "111"]),
        f"{MODEL} vidcom2 0.25 ttft": made("vidcom2", 0.25, "ttft", ttft_ratio={"value": 0.4}),
        f"{MODEL} vidcom2 0.25 e2e": made("vidcom2", 0.25, "e2e", e2e_ratio={"value": 0.5}),
        f"{MODEL} evs 0.25 ttft": made("evs", 0.25, "ttft", missing="n/a, reaches 50 %"),
    }
    lines = scripts.headline.headline_text(FACTS, cells).split("\n")

    assert "| `vidcom2` | 83.3 · not run · not run | 2.50× | 2.00× |" in lines
    assert "| `evs` | not run · not run · not run | n/a, reaches 50 % | not run |" in lines


def test_every_published_policy_has_its_cells_and_those_with_fixed_counts_have_one_each(scripts: Any) -> None:
    names = scripts.wanted.policies()
    asked = scripts.wanted.cells([MODEL], names, 9, 0)

    assert names[0] == "none" and set(names) == set(registry.default().policies)
    of = {name: {cell.ratio for cell in asked if cell.policy == name} for name in names}
    assert of["vidcom2"] == set(TABLE_RATIOS)
    assert of["none"] == of["fastv-released"] == {None}
    assert {cell.what for cell in asked} == {"static", "jitter", "cuts", "ttft", "e2e"}
    assert {cell.ratio for cell in asked if cell.what == "e2e"} == {0.25}
    assert len({cell.name for cell in asked}) == len(asked)


def test_a_cell_holds_until_policy_questions_or_seed_change(scripts: Any, tmp_path: Path) -> None:
    wanted, store = scripts.wanted, scripts.store.Store(tmp_path / "cells.json")
    cell, *_ = wanted.cells([MODEL], ["vidcom2"], 9, 0)
    store.put(cell, {"clips": ["110"]}, FACTS[MODEL])

    again = scripts.store.Store(tmp_path / "cells.json")
    assert again.has(cell)
    assert again.cells[cell.name]["clips"] == ["110"]
    for other in (wanted.cells([MODEL], ["vidcom2"], 18, 0)[0], wanted.cells([MODEL], ["vidcom2"], 9, 1)[0]):
        assert other.name == cell.name and not again.has(other)
    assert load_policy("vidcom2", retention_ratio=cell.ratio).hash in cell.key
    again.keep_only([])
    assert scripts.store.Store(tmp_path / "cells.json").cells == {}


@pytest.mark.parametrize(("name", "in_prompt"), [("vidcom2", 0.5), ("fastv", 1.0)])
def test_a_cell_holds_the_answers_by_clip_and_what_was_attained(ward: Any, name: str, in_prompt: float) -> None:
    found = ward.score(load_policy(name, retention_ratio=0.5))

    assert sum(map(len, found["clips"])) == 18 and len(found["clips"]) == 2
    assert found["in_prompt"] == pytest.approx(in_prompt, abs=0.01)
    assert found["over_layers"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("name", "ratio", "missing", "why"),
    [("fastv", 0.1, "n/a, reaches 25.3 to 100 %", ""), ("pyramiddrop-released", None, "n/a", "prune: after")],
)
def test_what_cannot_be_says_why(scripts: Any, name: str, ratio: float | None, missing: str, why: str) -> None:
    (cell,) = (one for one in scripts.wanted.cells([MODEL], [name], 9, 0) if (one.ratio, one.what) == (ratio, "static"))
    found, facts = scripts.worker.measure(cell, 9, 0)

    assert found["missing"] == missing
    assert why in found.get("why", "")
    assert facts["checkpoint"] == MODEL
    row = next(
        line
        for line in scripts.page.table_text({MODEL: facts}, {cell.name: made(name, ratio, "static", **found)}).split(
            "\n"
        )
        if line.startswith(f"| {name} ")
    )
    assert missing in row and ("[1]" in row) == bool(why)


def test_a_stage_that_breaks_is_a_failure_and_not_a_number_that_cannot_be(
    scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*asked: Any) -> None:
        raise StageError("raised inside")

    monkeypatch.setattr(scripts.worker.Ward, "score", breaks)
    cell, *_ = scripts.wanted.cells([MODEL], ["vidcom2"], 9, 0)
    with pytest.raises(RuntimeError, match="StageError: raised inside"):
        scripts.worker.measure(cell, 9, 0)


def test_alike_answers_about_a_clip_count_as_one_question(scripts: Any) -> None:
    together = scripts.page.accuracy({"clips": ["1" * 9] * 10 + ["0" * 9] * 10})
    apart = scripts.page.accuracy({"clips": ["10" * 4] * 10})

    fair = wilson_interval(9, 18)
    assert together.n in (18, 19) and (together.low, together.high) == pytest.approx((fair.low, fair.high), abs=0.02)
    assert apart.n == 10 * 8
    assert scripts.page.accuracy({"clips": ["111"] * 10}).n == 10


def test_pairs_show_the_difference_a_frame_budget_makes_and_leave_out_what_is_not_there(scripts: Any) -> None:
    plain, budgeted = ["100", "000"] * 10, ["110", "000"] * 10
    cells = {
        f"{MODEL} {name} 0.5 cuts": made(name, 0.5, "cuts", clips=clips, in_prompt=1.0, over_layers=0.5)
        for name, clips in (("fastv", plain), ("vidcom2-fastv", budgeted))
    }
    printed = scripts.page.table_text(FACTS, cells)

    line = next(line for line in printed.split("\n") if line.startswith(f"| {MODEL} | fastv"))
    assert "16.7 → 33.3, +16.7 (" in line and "not run" in line
    assert "Not measured: vidcom2-pyramiddrop, vidcom2-sparsevlm." in printed


def test_each_process_keeps_to_one_model_and_rung_and_helps_when_it_has_nothing_left(scripts: Any) -> None:
    import policy_table  # scripts is on the path while the fixture is open

    todo = scripts.wanted.cells(scripts.wanted.MODEL_NAMES, ["vidcom2", "random"], 9, 0)
    scored = [cell for cell in todo if cell.what in ("static", "jitter", "cuts")]
    queues, dealt = policy_table.Queues(scored, 2), ([], [])
    for turn in range(len(scored)):
        dealt[turn % 2].append(queues.next(turn % 2))

    assert queues.left == 0 and queues.next(0) is None
    assert sorted(cell.name for cell in dealt[0] + dealt[1]) == sorted(cell.name for cell in scored)
    for own in dealt:
        places = [(cell.model, cell.what) for cell in own]
        assert sum(a != b for a, b in itertools.pairwise(places)) == len(set(places)) - 1
    assert not {(c.model, c.what) for c in dealt[0]} & {(c.model, c.what) for c in dealt[1]}
    lone = policy_table.Queues(scored[:6], 2)
    assert [lone.next(0), lone.next(1)] == [scored[0], scored[5]]
