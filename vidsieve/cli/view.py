"""`vidsieve view`: what policies keep of a video, as a page, a picture or a film."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsieve.cli.options import PANEL, FieldsOf, Json, PolicyOptions, option
from vidsieve.cli.output import complain, note, say, say_json, warn_differences, warn_unknown_words, workload_line
from vidsieve.framework.errors import UsageError
from vidsieve.harness.setup import DEFAULT_QUESTION, Setup

if TYPE_CHECKING:
    from vidsieve.framework.policy.policy import Policy
    from vidsieve.framework.registry import Registry
    from vidsieve.framework.task import Example
    from vidsieve.harness.session import Session
    from vidsieve.view import View

OUT = Path("view.html")


def view(
    settings: Annotated[dict[str, Any], FieldsOf(Setup)],
    video: Annotated[
        str | None,
        typer.Argument(metavar="[VIDEO]", help="A video file; left out: the first held-out example of the data."),
    ] = None,
    policy: Annotated[
        list[str] | None,
        option(
            "--policy",
            PANEL,
            "A published policy (see `vidsieve ls`) or a YAML file. Repeatable: side by side.  (default: vidcom2)",
        ),
    ] = None,
    retention: Annotated[
        float | None,
        option("--retention", PANEL, "Share of the visual tokens to keep, for every policy that removes any."),
    ] = None,
    set: Annotated[
        list[str] | None,
        option("--set", PANEL, "Another setting of the one policy. Repeatable.", "LABEL.SETTING=VALUE"),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="The file to write: .html (a page), .png (a picture) or .mp4 (a film).")
    ] = OUT,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    json: Json = False,
) -> None:
    """Show which visual tokens of a video policies keep, drop and merge, frame by frame."""
    from vidsieve.view import check_view_output

    check_view_output(out, force=force)
    names, question = policy or ["vidcom2"], _question(settings, video)
    if set and len(names) > 1:
        raise UsageError("--set: goes with one --policy; write the settings of several into policy files.")
    setup = Setup(**settings)
    from vidsieve.harness.one_request import open_one
    from vidsieve.harness.session import choose_for

    loaders = [_Loader(name, retention, set) for name in names]
    chosen = choose_for(loaders[0], setup)
    policies = [chosen.policy, *(load(chosen.registry) for load in loaders[1:])]
    if chosen.choice.note:
        note(chosen.choice.note)
    session, example = open_one(chosen, video, question, notice=note)
    note(workload_line(session, video or example.id))
    for one in policies:
        warn_differences(one, session)
    warn_unknown_words(example.question, session)
    name = Path(video).name if video else example.id
    seen = _seen(session, policies, example, name, quiet=json)
    path = seen.write(out, force=force)
    for notice in session.bench.notices:
        complain(notice, kind="warning")
    _tell(seen, path, json=json)


def _question(settings: dict[str, Any], video: str | None) -> str:
    """Take the question about one video out of the settings. Raises UsageError for a video beside other data."""
    if video is None:
        return ""
    for name in ("data", "videos", "rung"):
        if settings[name] is not None:
            raise UsageError(f"--{name}: chooses what to look at, but a video was given; leave one of them out.")
    asked: str | None = settings.pop("question")
    if asked is not None and not asked.strip():
        raise UsageError("--question: is empty; write what to ask, or leave it out.")
    return asked or DEFAULT_QUESTION


class _Loader:
    """Loads one policy under the options; one that removes nothing before decode has no retention ratio to set."""

    def __init__(self, name: str, retention: float | None, settings: list[str] | None) -> None:
        self._options = PolicyOptions(policy=name, retention=retention, set=settings)
        self._plain = PolicyOptions(policy=name)

    def __call__(self, registry: "Registry") -> "Policy":
        plain = self._plain.load(registry)
        return plain if len(plain.stages) == len(plain.kv_stages) else self._options.load(registry)


def _seen(session: "Session", policies: "list[Policy]", example: "Example", name: str, *, quiet: bool) -> "View":
    """Run the model under each policy and put what they did side by side."""
    from vidsieve.cli.progress import search_progress
    from vidsieve.harness.one_request import written_under
    from vidsieve.view import show

    runner = session.bench.runner
    written = []
    with search_progress(quiet) as progress:
        for one in written_under(session, policies, example):
            written.append(one)
            progress.step("policies run", len(written), len(policies))
    clip = runner.reader.clip(example)
    reports = [one.report for one in written if one.report is not None]
    return show(
        reports,
        runner.processor.seen(clip.frames),
        timestamps_s=clip.timestamps_s,
        words=[one.words for one in written],
        answers=[one.answer for one in written],
        title=name,
        question=example.question,
        facts=[workload_line(session, name)],
    )


def _tell(seen: "View", path: Path, *, json: bool) -> None:
    """Print what was done, and what the picture cannot show."""
    if json:
        say_json({"out": str(path), "sentences": seen.sentences, "policies": seen.to_list()})
        return
    for line in [*seen.summaries, *seen.sentences]:
        say(line)
    say(f"written: {path}")
