"""The leaders of the search ranked once more, as rows of a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vidsieve.report.number_format import NOT_MEASURED, percent, points
from vidsieve.tuner.result import TuneResult


@dataclass(frozen=True)
class LeaderRow:
    """A leader, best first. `change` is the estimate that ranks, `answers` that of right and wrong alone; points."""

    trial: int
    policy: str
    retention: str
    change: str
    answers: str


def leader_rows(result: TuneResult) -> list[LeaderRow]:
    """Those that were ranked anew; none where that was skipped."""
    return [_row(leader) for leader in _rerank(result).get("leaders", ())]


def leaders_told(result: TuneResult) -> str:
    """What was done in a sentence, or why it was not; empty where nothing is known."""
    told = _rerank(result)
    if told.get("skipped"):
        return f"The leaders were not ranked once more: {told['skipped']}."
    if not told.get("leaders"):
        return ""
    order = "That changed their order." if told.get("changed_order") else "Their order stayed as it was."
    return f"The leaders of the search on {told['examples']} further examples, which had chosen none of them. {order}"


def _rerank(result: TuneResult) -> Mapping[str, Any]:
    return result.policy.provenance.get("rerank") or {}


def _row(leader: Mapping[str, Any]) -> LeaderRow:
    ratio = leader["retention_ratio"]
    return LeaderRow(
        trial=leader["trial"],
        policy=leader["policy"],
        retention=percent(ratio) if ratio is not None else NOT_MEASURED,
        change=f"{points(leader['change_points'])} ± {leader['error_points']:.1f}",
        answers=points(leader["correct_change_points"]),
    )
