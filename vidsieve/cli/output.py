"""Write what verbs print: results on standard output, everything else on standard error."""

import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import typer

from vidsieve.cli.options import with_flags
from vidsieve.framework.settings_field import flag_of

if TYPE_CHECKING:
    from vidsieve.framework.policy.policy import Policy
    from vidsieve.harness.output_files import Outputs
    from vidsieve.harness.session import OpenBenches, Session
    from vidsieve.harness.setup import Setup
    from vidsieve.tuner.result import TuneResult


def say(text: str = "") -> None:
    """Print a line of the result."""
    typer.echo(text)


def note(text: str) -> None:
    """Print a line about the work, kept out of what a script reads."""
    typer.echo(with_flags(text), err=True)


def complain(text: str, *, kind: str = "error") -> None:
    """Print a failure or a warning on standard error."""
    text = with_flags(text)
    typer.echo(f"{kind}: {text}" if kind else text, err=True)


def say_json(document: Any) -> None:
    """Print one JSON document; numbers that JSON lacks become null."""
    typer.echo(json.dumps(_plain(document), indent=2, ensure_ascii=False))


def _plain(value: Any) -> Any:
    """Return `value` in JSON's own types."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table that fits the terminal; piped, every cell is written in full."""
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
    """Warn of a tuned policy on another model, device or workload than it was measured on."""
    from vidsieve.harness.session import differences

    found = differences(policy, dict(session.bench.describe()))
    if found:
        complain(f"policy {policy.name!r} was measured elsewhere: {'; '.join(found)}.", kind="warning")


def warn_unknown_words(question: str, session: "Session") -> None:
    """Warn of words that a bundled model does not know: such a question gets no sensible answer."""
    bundled = session.loaded.choice.bundled
    if bundled is None:
        return
    from vidsieve.bundled.unknown_words import unknown_words_warning

    warning = unknown_words_warning(question, bundled)
    if warning is not None:
        complain(warning, kind="warning")


def write_policy(result: "TuneResult", outputs: "Outputs") -> None:
    """Write the file; if the disk refuses, print it, so that the search is not lost."""
    from vidsieve.framework.errors import VidsieveError

    try:
        outputs.write_policy(result)
    except VidsieveError:
        complain("the policy file could not be written; it follows on standard output.", kind="warning")
        say(result.yaml)
        raise


def workload_line(session: "Session | OpenBenches", data: str | None = None) -> str:
    """Write workload, device and data in one line."""
    facts = session.bench.describe()
    sampled = _frames(session.bench.frames_taken, facts)
    pixels = f", at most {facts['max_pixels']} pixels" if "max_pixels" in facts else ""
    shape = session.bench.shape
    threads = f", {facts['threads']} threads" if facts["device"] == "cpu" else ""
    return (
        f"workload: {facts['checkpoint']}, {sampled}{pixels} ({shape.frames} x {shape.tokens} visual tokens), "
        f"{facts['batch_size']} video(s) a request, {facts['max_new_tokens']} new tokens | device: {facts['device']} "
        f"({facts['device_name']}{threads}, {facts['dtype']}, {facts['attn']}) | data: {data or data_summary(session)}"
    )


def _frames(taken: tuple[int, int], facts: Mapping[str, str]) -> str:
    """Write how many frames the clips give, and what was requested where that is another number."""
    least, most = taken
    given = f"{most} frame{'' if most == 1 else 's'}" if least == most else f"{least} to {most} frames"
    if "fps" in facts:
        return f"{given} ({facts['fps']} a second)"
    return given if str(least) == str(most) == facts["frames"] else f"{given} (of {facts['frames']} asked)"


def data_summary(session: "Session | OpenBenches") -> str:
    """Write the task in a few words."""
    facts = session.task.describe()
    size = f", {facts['examples']} questions" if "examples" in facts else ""
    size += f", {facts['videos']} videos" if "videos" in facts else ""
    return f"{session.task.name} ({session.task.metric}{size})"


def given_options(setup: "Setup", **more: Any) -> list[str]:
    """List the options as given, ready to be typed again."""
    given = {field.name: getattr(setup, field.name) for field in fields(setup)}
    words = []
    for field in fields(setup):
        if given[field.name] == field.default or given[field.name] is None:
            continue
        if given[field.name] is True:
            words.append(flag_of(field))
            continue
        values = given[field.name] if isinstance(given[field.name], list) else [given[field.name]]
        for value in values:
            words += [flag_of(field), str(value)]
    for name, value in more.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def command(verb: str, words: list[str]) -> str:
    """Write a command line that a shell reads back as it was meant."""
    return shlex.join(["vidsieve", verb, *words])


def interval(value: Mapping[str, Any], unit: str = "", scale: float = 1.0, digits: int = 1) -> str:
    """Write '12.3 [12.1, 12.6] ms' from an interval's dictionary."""
    middle, low, high = (f"{scale * value[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{middle} [{low}, {high}]{unit}"


def minutes(seconds: float) -> str:
    """Write a stretch of time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
