"""The result of a benchmark as text: its head, its tables, and two results beside each other."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vidsieve.report.number_format import plain
from vidsieve.tuner.statistics import ms

Result = Mapping[str, Any]
"""What `benchmark` returns, or a file of it."""
MIB, TERA = 2**20, 1e12
PARTS = ("video", "preprocess", "vision", "compress", "prefill", "decode", "other")
MEASURED = "measured"


class Table(NamedTuple):
    """A table: its title, the names of its columns, and its rows."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def head_lines(result: Result) -> list[str]:
    """Say what was measured, on what, and how."""
    about, settings = result["about"], result["settings"]
    threads = f", {about['threads']} threads" if about["device"] == "cpu" else ""
    first = result["workloads"][0]
    compiled = ", decoder compiled" if settings["compile"] else ""
    lines = [
        f"model: {result['model']}",
        f"machine: {about['device_name']} ({about['device']}{threads}), {about['system']}",
        f"run as: {about['dtype']}, {about['attn']}{compiled}, batch {first.get('batch_size', 1)}, "
        f"{first.get('new_tokens', '?')} new tokens, {settings['repeats']} turns with the uncompressed model",
        f"video: {result['video']}",
        f"memory: {result['memory']}",
        f"versions: vidsieve {about['vidsieve']}, torch {about['torch']}, transformers {about['transformers']}, Python "
        f"{about['python']}",
    ]
    return lines if result["complete"] else [*lines, "INCOMPLETE: stopped before everything was measured"]


def tables(result: Result) -> list[Table]:
    """Make for each number of frames the tables of times, of sizes and of the breakdown, and what was not measured."""
    found = [make(work) for work in result["workloads"] for make in (_times, _sizes, _breakdown, _not_measured)]
    return [table for table in found if table.rows]


def name_of(cell: Mapping[str, Any]) -> str:
    """Write a cell's policy, with the ratio where one was asked."""
    asked = cell["asked_ratio"]
    return plain(cell["policy"], 40) + (f" @ {asked:g}" if asked is not None else "")


def _title(work: Mapping[str, Any]) -> str:
    grid = work.get("grid")
    shape = f", {grid['units']} x {grid['tokens_per_unit']} visual tokens a video" if grid else ""
    return f"{work['frames']} frames{shape}"


def _times(work: Mapping[str, Any]) -> Table:
    head = ["policy", "visual tokens", "kept", "TTFT ms", "÷", "TPOT ms", "÷", "request ms", "÷", "tokens/s"]
    return Table(_title(work), head, [_time_row(cell) for cell in work["cells"] if "measures" in cell])


def _time_row(cell: Mapping[str, Any]) -> list[str]:
    measures, ratios = cell["measures"], cell.get("ratios", {})
    timed: list[str] = []
    for measure in ("ttft", "tpot", "e2e"):
        timed += [_interval(measures.get(f"{measure}_ms")), _ratio(ratios.get(measure))]
    kept = f"{cell['retention_ratio']:.3f}"
    return [name_of(cell), str(cell["visual_tokens"]), kept, *timed, ms(measures["tokens_per_s"]["value"])]


def _sizes(work: Mapping[str, Any]) -> Table:
    head = ["policy", "TFLOP", "÷", "before MiB", "peak MiB", "by compress MiB", "KV MiB", "KV on device MiB"]
    cells = [cell for cell in work["cells"] if "flops" in cell]
    return Table("what it takes (÷: to the first row)", head, [_size_row(cell, cells[0]) for cell in cells])


def _size_row(cell: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    memory, flops = cell["memory"] or {}, cell["flops"]["total"]
    return [
        name_of(cell),
        f"{flops / TERA:.4g}",
        f"{flops / base['flops']['total']:.3f}",
        *(f"{memory[key] / MIB:.0f}" if memory else "" for key in ("held_bytes", "peak_bytes", "compress_added_bytes")),
        *(f"{cell[key] / MIB:.1f}" for key in ("kv_bytes", "kv_resident_bytes")),
    ]


def _not_measured(work: Mapping[str, Any]) -> Table:
    cells = [cell for cell in work["cells"] if cell["status"] != MEASURED]
    rows = [[name_of(cell), cell["status"], plain(cell["reason"], 400)] for cell in cells]
    return Table("not measured", ["policy", "", "why"], rows)


def _breakdown(work: Mapping[str, Any]) -> Table:
    head = ["policy", *(f"{part} ms" for part in PARTS), "whole ms", "parts ÷ whole", "compress ÷ uncompressed TTFT"]
    base = work["cells"][0].get("measures", {}).get("ttft_ms")
    rows = []
    for cell in work["cells"]:
        if "parts_ms" not in cell:
            continue
        parts = cell["parts_ms"]
        share = f"{parts['compress_ms'] / base['value']:.2%}" if base and cell is not work["cells"][0] else ""
        whole = ms(cell["measures"]["e2e_ms"]["value"])
        rows.append(
            [
                name_of(cell),
                *(ms(parts[f"{part}_ms"]) for part in PARTS),
                whole,
                f"{cell['parts_over_whole']:.1%}",
                share,
            ]
        )
    return Table("where the time goes (medians; decode: all steps together)", head, rows)


def _interval(value: Mapping[str, Any] | None) -> str:
    return "" if value is None else f"{ms(value['value'])} [{ms(value['low'])}, {ms(value['high'])}]"


def _ratio(value: Mapping[str, Any] | None) -> str:
    return "" if value is None else f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


COMPARED = {"ttft_ms": "TTFT ms", "tpot_ms": "TPOT ms", "e2e_ms": "request ms"}
COUNTED = {"visual_tokens": "visual tokens", "kv_resident_bytes": "KV bytes"}


def comparison(this: Result, other: Result) -> tuple[list[str], Table]:
    """Compare two results cell by cell; also what differs in what they were measured on.

    A time is "beyond its interval" where the two intervals do not overlap.
    """
    ours, theirs = ({**each["about"], "model": each["model"], "video": each["video"]} for each in (this, other))
    names = [name for name in dict.fromkeys([*theirs, *ours]) if ours.get(name) != theirs.get(name)]
    lines = [f"{name}: {theirs.get(name, 'not told')} → {ours.get(name, 'not told')}" for name in names]
    before, now = _cells(other), _cells(this)
    rows = [row for key in dict.fromkeys([*before, *now]) for row in _compared(key, before.get(key), now.get(key))]
    return lines, Table("cell by cell", ["cell", "measure", "other", "this", "this ÷ other", ""], rows)


def _cells(result: Result) -> dict[str, Mapping[str, Any]]:
    return {f"{work['frames']} frames, {name_of(cell)}": cell for work in result["workloads"] for cell in work["cells"]}


def _compared(key: str, before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> list[list[str]]:
    if before is None or now is None:
        return [[key, "", "there" if before else "not there", "there" if now else "not there", "", ""]]
    if MEASURED not in (before["status"], now["status"]) or before["status"] != now["status"]:
        return [[key, "", *(plain(f"{c['status']} {c['reason']}") for c in (before, now)), "", ""]]
    rows = []
    for name, title in COMPARED.items():
        old, new = before["measures"].get(name), now["measures"].get(name)
        if old and new:
            apart = old["high"] < new["low"] or new["high"] < old["low"]
            word = ("slower" if new["value"] > old["value"] else "faster") + ", beyond its interval" if apart else ""
            rows.append([key, title, _interval(old), _interval(new), f"{new['value'] / old['value']:.3f}", word])
    counts = [(title, before[name], now[name]) for name, title in COUNTED.items()]
    counts.append(("FLOPs", before["flops"]["total"], now["flops"]["total"]))
    if before["memory"] and now["memory"]:
        counts.append(("peak bytes", before["memory"]["peak_bytes"], now["memory"]["peak_bytes"]))
    rows += [[key, title, f"{a:,}", f"{b:,}", f"{b / a:.3f}" if a else "", ""] for title, a, b in counts if a != b]
    return rows
