"""Sentences that several verbs print."""

import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from vidsieve.framework.settings_field import flag_of

if TYPE_CHECKING:
    from vidsieve.harness.session import OpenBenches, Session
    from vidsieve.harness.setup import Setup


def workload_line(session: "Session | OpenBenches", data: str | None = None) -> str:
    """Workload, device and data, in one line."""
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
    """How many frames the clips give, and what was asked for where that is another number."""
    least, most = taken
    given = f"{most} frame{'' if most == 1 else 's'}" if least == most else f"{least} to {most} frames"
    if "fps" in facts:
        return f"{given} ({facts['fps']} a second)"
    return given if str(least) == str(most) == facts["frames"] else f"{given} (of {facts['frames']} asked)"


def data_summary(session: "Session | OpenBenches") -> str:
    """The task in a few words."""
    facts = session.task.describe()
    size = f", {facts['examples']} questions" if "examples" in facts else ""
    size += f", {facts['videos']} videos" if "videos" in facts else ""
    return f"{session.task.name} ({session.task.metric}{size})"


def given_options(setup: "Setup", **more: Any) -> list[str]:
    """The options as given, ready to be typed again."""
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
    """A command line that a shell reads back as it was meant."""
    return shlex.join(["vidsieve", verb, *words])


def interval(value: Mapping[str, Any], unit: str = "", scale: float = 1.0, digits: int = 1) -> str:
    """'12.3 [12.1, 12.6] ms' from an interval's dictionary."""
    middle, low, high = (f"{scale * value[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{middle} [{low}, {high}]{unit}"


def minutes(seconds: float) -> str:
    """A stretch of time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
