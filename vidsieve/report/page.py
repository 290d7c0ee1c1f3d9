"""The report of a search: one HTML file that needs nothing else."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsieve.framework.errors import UsageError
from vidsieve.report.headline import MEANING, badges, headline, measured_again, target_words, tiles
from vidsieve.report.number_format import percent, plain, visible
from vidsieve.report.pareto import pareto_inline
from vidsieve.report.points import chosen_trial, metric_of
from vidsieve.report.tables import (
    control_rows,
    facts,
    importance_rows,
    leader_rows,
    leaders_sentence,
    parts,
    search_facts,
    trial_rows,
)
from vidsieve.tuner.atomic_files import write_atomically
from vidsieve.tuner.result import TuneResult
from vidsieve.tuner.statistics import ms

if TYPE_CHECKING:
    from jinja2 import Template

SUFFIXES = (".html", ".htm")
LONGEST_YAML = 20_000
# shown above them, or of no use to a reader: the ids are in the policy file
NOT_PROVENANCE = (
    *("latency", "accuracy", "controls", "search", "warnings", "heldout_ids", "bounds", "target", "schema"),
    *("breakdown_ms", "rerank", "composition"),
)


def report_html(result: TuneResult) -> str:
    """Write the report as HTML: no scripts, nothing loaded from elsewhere. Parts that were not measured say so."""
    return _template().render(
        **_verdict(result),
        figure=pareto_inline(result),
        controls=control_rows(result),
        parts=parts(result),
        importance=importance_rows(result),
        trials=trial_rows(result),
        trials_in_all=len(result.trials),
        confirmed_retention=_confirmed_retention(result),
        leaders=leader_rows(result),
        leaders_sentence=leaders_sentence(result),
        search=search_facts(result),
        set_aside=dict(result.search.get("set_aside", {})),
        **_provenance(result),
    )


def write_report(result: TuneResult, path: str | Path, *, force: bool = False) -> Path:
    """Write the report as .html, whole or not at all.

    Raises:
        UsageError: another suffix; the file exists and `force` is not given; its folder cannot be written to.
        TuneError: the disk refused.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"report {path}: must end in .html, got {suffix or 'no ending'!r}.")
    return write_atomically(path, report_html(result), force=force, what="report")


def _verdict(result: TuneResult) -> dict[str, Any]:
    """Collect what the top of the page shows."""
    metric = metric_of(result)
    sentences = result.sentences()
    return {
        "name": result.policy.name,
        "headline": headline(result),
        "badges": badges(result),
        "tiles": tiles(result),
        "sentences": [line for line in sentences if not line.startswith("warning: ")],
        "warnings": result.warnings,
        "metric": metric,
        "meaning": MEANING.get(metric, ""),
        "target": target_words(result),
        "target_ms": ms(result.target_ms),
        "again": measured_again(result),
        "empty": result.policy.is_empty,
        "accuracy": result.accuracy,
        "interrupted": not result.confirmed,
    }


def _confirmed_retention(result: TuneResult) -> str:
    """Say with what retention the chosen trial was confirmed, where that is not the one it had; else empty."""
    trial, ratio = chosen_trial(result), result.policy.retention_ratio
    if trial is None or trial.retention_ratio is None or ratio is None or ratio == trial.retention_ratio:
        return ""
    kept = f"The chosen policy keeps {percent(ratio)} of the tokens in the end"
    if ratio < trial.retention_ratio:
        return f"{kept}: fewer than in its trial, so that its confirmed latency fits."
    return f"{kept}: more than in its trial, because its confirmed latency left room."


def _provenance(result: TuneResult) -> dict[str, Any]:
    """Collect the provenance and the policy itself."""
    section = result.policy.provenance
    yaml = visible(replace(result.policy, provenance={}).to_yaml())
    return {
        "bounds": facts(section.get("bounds", {})),
        "target_facts": facts(section.get("target", {}), "target"),
        "provenance": facts({key: value for key, value in section.items() if key not in NOT_PROVENANCE}),
        "hash": result.policy.hash,
        "yaml": yaml if len(yaml) <= LONGEST_YAML else f"{yaml[:LONGEST_YAML]}\n(cut; see the policy file)",
    }


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vidsieve.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = plain
    return environment.get_template("report.html.j2")
