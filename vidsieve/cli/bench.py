"""`vidsieve bench`: speed and memory of policies here, beside the uncompressed model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsieve.cli.options import FieldsOf, Json, option
from vidsieve.cli.output import note, say, say_json, table
from vidsieve.framework.errors import UsageError
from vidsieve.harness.benchmark.bench_settings import BenchSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

FILES = "Files"
INTERRUPTED = 130
BenchOptions = Annotated[dict[str, Any], FieldsOf(BenchSettings)]


def bench(
    settings: BenchOptions,
    result: Annotated[
        str | None,
        typer.Argument(metavar="[RESULT]", help="A file that --out wrote earlier: shown again, nothing is measured."),
    ] = None,
    compare: Annotated[
        str | None, option("--compare", FILES, "Another such file, compared with the result cell by cell.", "RESULT")
    ] = None,
    out: Annotated[Path | None, option("--out", FILES, "Write the result as JSON, also when stopped half-way.")] = None,
    picture: Annotated[Path | None, option("--picture", FILES, "Draw the breakdown, as .svg or .png.")] = None,
    force: Annotated[bool, option("--force", FILES, "Replace these files if they exist.")] = False,
    json: Json = False,
) -> None:
    """Measure what policies bring on this machine: time, memory, KV cache and operations of whole requests.

    Each policy is timed in turn with the uncompressed model. Ctrl-C prints what was measured by then.

    Exit codes: 0 measured, 1 error, 2 usage, 130 interrupted (what there is has been printed and written).
    """
    from vidsieve.harness.benchmark.bench_files import read_result

    other = None if compare is None else read_result(compare)
    _check_files(out, picture, force=force)
    found = _measured(settings, out, force=force) if result is None else _stored(settings, result, out)
    if picture is not None:
        from vidsieve.report.bench_picture import write_bench_picture

        write_bench_picture(found, picture, force=force)
    if json:
        say_json(found)
    else:
        _print(found)
    if other is not None:
        (_note_comparison if json else _print_comparison)(found, other)
    if not found["complete"] and result is None:
        raise typer.Exit(INTERRUPTED)


def _check_files(out: Path | None, picture: Path | None, *, force: bool) -> None:
    """Refuse files that could not be written, before anything is measured."""
    from vidsieve.tuner.atomic_files import check_output

    if out is not None:
        check_output(out, force=force)
    if picture is not None:
        from vidsieve.report.bench_picture import check_bench_picture

        check_bench_picture(picture, force=force)


def _stored(settings: dict[str, Any], result: str, out: Path | None) -> dict[str, Any]:
    """Read a result instead of measuring. Raises UsageError for options of a measurement."""
    from vidsieve.cli.options import FLAGS
    from vidsieve.harness.benchmark.bench_files import read_result

    given = [name for name, field in BenchSettings.__dataclass_fields__.items() if settings[name] != field.default]
    if given or out is not None:
        flag = FLAGS[given[0]] if given else "--out"
        raise UsageError(f"{flag}: belongs to a measurement, but {result} is only shown again; leave one of them out.")
    return read_result(result)


def _measured(settings: dict[str, Any], out: Path | None, *, force: bool) -> dict[str, Any]:
    """Measure; with `out` every workload is written as soon as it is done."""
    from vidsieve.cli.progress import search_progress
    from vidsieve.harness.benchmark.bench_files import write_result
    from vidsieve.harness.benchmark.benchmark import Benchmark

    written = force

    def save(found: "Mapping[str, Any]") -> None:
        nonlocal written
        if out is not None:
            write_result(found, out, force=written)
            written = True

    with search_progress(quiet=True) as progress:
        found = Benchmark(BenchSettings(**settings), notice=note, step=progress.step, save=save).run()
        save(found)
    return found


def _print(found: "Mapping[str, Any]") -> None:
    from vidsieve.report.bench_tables import head_lines, tables

    for line in head_lines(found):
        say(line)
    for each in tables(found):
        say()
        table(*each)


def _print_comparison(found: "Mapping[str, Any]", other: "Mapping[str, Any]") -> None:
    from vidsieve.report.bench_tables import comparison

    lines, cells = comparison(found, other)
    say()
    for line in lines:
        say(line)
    table(*cells)


def _note_comparison(found: "Mapping[str, Any]", other: "Mapping[str, Any]") -> None:
    """Beside a JSON document, the comparison goes to standard error."""
    from vidsieve.report.bench_tables import comparison

    lines, cells = comparison(found, other)
    for line in [*lines, *("  ".join(row) for row in cells.rows)]:
        note(line)
