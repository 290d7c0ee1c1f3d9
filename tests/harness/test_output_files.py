"""Which files of an earlier search a resumed one may replace without being told to."""

from pathlib import Path

import pytest

from vidsieve.framework.errors import UsageError
from vidsieve.harness.output_files import Outputs

POLICY = """format: 1
name: kept
summary: Keep the tokens that change.
retention_ratio: 0.5
stages:
  - {use: vidcom2.token-score}
  - {use: top-k}
"""
COMPANIONS = ("policy.report.html", "policy.pareto.svg")


def left(folder: Path, provenance: str, companions: tuple[str, ...] = ()) -> Path:
    """What an earlier search left behind."""
    (folder / "policy.yaml").write_text(POLICY + provenance)
    for name in companions:
        (folder / name).write_text("there")
    return folder / "policy.yaml"


@pytest.mark.parametrize(
    ("provenance", "companions"),
    [
        ("provenance: {confirmed: false}\n", ()),
        ("provenance: {confirmed: false}\n", COMPANIONS),
        ("provenance: {confirmed: true}\n", ()),
        ("provenance: {confirmed: true}\n", COMPANIONS[:1]),
    ],
)
def test_what_an_unfinished_search_left_is_replaced_on_resume(
    tmp_path: Path, provenance: str, companions: tuple[str, ...]
) -> None:
    policy = left(tmp_path, provenance, companions)
    Outputs(policy, force=False, resumable=True)
    with pytest.raises(UsageError, match=r"exists already\. Give `force`"):
        Outputs(policy, force=False, resumable=False)


@pytest.mark.parametrize(
    ("provenance", "companions"),
    [
        ("provenance: {confirmed: true}\n", COMPANIONS),
        ("", ()),
        ("provenance: {confirmed: perhaps}\n", ()),
        ("broken: [\n", ()),
    ],
)
def test_a_finished_or_foreign_policy_is_not_replaced_on_resume(
    tmp_path: Path, provenance: str, companions: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError, match=r"exists already\. Give `force`"):
        Outputs(left(tmp_path, provenance, companions), force=False, resumable=True)
