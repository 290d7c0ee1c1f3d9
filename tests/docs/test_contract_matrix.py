"""The script that puts all policies on all families through the contract tells ok, refused and failed apart."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from doc_pages import ROOT

from vidsieve.framework import registry
from vidsieve.framework.errors import RetentionError, StageError

LOG = ROOT / "scripts" / "data" / "contract_matrix.md"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """scripts/contract_matrix.py as a module."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import contract_matrix

        yield contract_matrix
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def test_the_log_has_every_family_and_no_failure() -> None:
    log = LOG.read_text(encoding="utf-8")
    head = next(line for line in log.splitlines() if line.startswith("| policy |"))
    assert set(head.strip("| ").split(" | ")) == {"policy", "seconds", *registry.default().models}
    assert "FAILED" not in log and ", 0 failed." in log


def test_a_pair_that_holds_is_ok_and_one_that_does_not_fit_is_refused_with_what_is_missing(script: ModuleType) -> None:
    reasons: list[str] = []
    assert script.verdict("qwen2-vl", "vidcom2", reasons) == "ok"
    assert script.verdict("gemma4", "fastv", reasons) == "refused: no prune_layer"
    assert reasons == []


@pytest.mark.parametrize(
    ("raised", "cell", "reason"),
    [
        (AssertionError("batch: row 0"), "FAILED [1]", "vidcom2 on qwen2-vl: batch: row 0"),
        (StageError("raised inside"), "FAILED [1]", "vidcom2 on qwen2-vl: StageError: raised inside"),
        (ValueError("odd\nmore"), "FAILED [1]", "vidcom2 on qwen2-vl: ValueError: odd"),
        (RetentionError("reaches 0.5"), "refused: [1]", "reaches 0.5"),
    ],
)
def test_what_goes_wrong_is_told_and_the_table_goes_on(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, raised: Exception, cell: str, reason: str
) -> None:
    def fails(*asked: Any) -> None:
        raise raised

    monkeypatch.setattr(script, "check_policy", fails)
    text, failed = script.matrix(["vidcom2"], ["qwen2-vl"])
    assert f"| vidcom2 | {cell} |" in text and f"[1] {reason}" in text
    assert failed == cell.startswith("FAILED")


def test_a_pair_that_runs_though_the_family_lacks_what_it_needs_is_a_failure(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "check_policy", lambda *asked: None)
    assert script.verdict("gemma4", "fastv", []) == "FAILED: not refused"
