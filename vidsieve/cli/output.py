"""Where the verbs write: results on standard output, everything else on standard error."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import typer

from vidsieve.cli.options import with_flags

if TYPE_CHECKING:
    from vidsieve.framework.policy.policy import Policy
    from vidsieve.harness.output_files import Outputs
    from vidsieve.harness.session import Session
    from vidsieve.tuner.result import TuneResult


def say(text: str = "") -> None:
    """A line of the result."""
    typer.echo(text)


def note(text: str) -> None:
    """A line about the work, kept out of what a script reads."""
    typer.echo(with_flags(text), err=True)


def complain(text: str, *, kind: str = "error") -> None:
    """A failure or a warning on standard error."""
    text = with_flags(text)
    typer.echo(f"{kind}: {text}" if kind else text, err=True)


def say_json(document: Any) -> None:
    """One JSON document; numbers that JSON lacks become null."""
    typer.echo(json.dumps(_plain(document), indent=2, ensure_ascii=False))


def _plain(value: Any) -> Any:
    """`value` in JSON's own types."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table that fits the terminal; piped, every cell is written in full."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=title, title_justify="left", box=None, pad_edge=False, title_style="bold")
    for name in head:
        drawn.add_column(name, overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    width = None if sys.stdout.isatty() else 200
    Console(file=sys.stdout, width=width, markup=False, highlight=False, soft_wrap=False).print(drawn)


def warn_differences(policy: "Policy", session: "Session") -> None:
    """A tuned policy on another model, device or workload than it was measured on."""
    from vidsieve.harness.session import differences

    found = differences(policy, dict(session.bench.describe()))
    if found:
        complain(f"policy {policy.name!r} was measured elsewhere: {'; '.join(found)}.", kind="warning")


def write_policy(result: "TuneResult", outputs: "Outputs") -> None:
    """Write the file; if the disk refuses, print it, so that the search is not lost."""
    from vidsieve.framework.errors import VidsieveError

    try:
        outputs.write_policy(result)
    except VidsieveError:
        complain("the policy file could not be written; it follows on standard output.", kind="warning")
        say(result.yaml)
        raise
