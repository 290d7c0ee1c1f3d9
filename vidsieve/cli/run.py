"""`vidsieve run`: one video, one question, with and without the policy."""

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsieve.cli.options import Json, PolicyOptions
from vidsieve.cli.output import complain, note, say, say_json, warn_differences, workload_line
from vidsieve.framework.errors import UsageError
from vidsieve.harness.setup import Setup

if TYPE_CHECKING:
    from vidsieve.framework.task import Example
    from vidsieve.harness.session import Chosen, Session


def run(
    setup: Setup,
    policy_options: PolicyOptions,
    video: Annotated[
        str | None,
        typer.Argument(metavar="[VIDEO]", help="A video file; left out: the first held-out example of the data."),
    ] = None,
    ask: Annotated[str | None, typer.Argument(metavar="[QUESTION]", help="What to ask about it.")] = None,
    json: Json = False,
) -> None:
    """Answer a question about a video with and without a policy; tells tokens and milliseconds."""
    _check(setup, video, ask)
    from vidsieve.harness.evaluation import answer_both
    from vidsieve.harness.session import choose_for

    chosen = choose_for(policy_options.load, setup)
    session, example = _open(chosen, video, ask)
    policy = chosen.policy
    if chosen.choice.note:
        note(chosen.choice.note)
    (note if json else say)(workload_line(session, video or example.id))
    warn_differences(policy, session)
    _warn_unknown_words(example.question, session)
    result = {"question": example.question, "label": example.answer, **answer_both(session.bench, policy, example)}
    for notice in session.bench.notices:
        complain(notice, kind="warning")
    say_json(result) if json else _print(result)


def _check(setup: Setup, video: str | None, ask: str | None) -> None:
    """Refuse a video without a question, or with other data. Raises UsageError."""
    if video is None:
        return
    if ask is None or not ask.strip():
        raise UsageError('run: give a question after the video, such as: vidsieve run clip.mp4 "What happens?"')
    for name in ("data", "videos", "rung"):
        if getattr(setup, name) is not None:
            raise UsageError(f"--{name}: chooses what to ask about, but a video was given; leave one of them out.")


def _open(chosen: "Chosen", video: str | None, ask: str | None) -> "tuple[Session, Example]":
    """Open a session on the one example of the request."""
    from vidsieve.harness.data.example_choice import choose_task
    from vidsieve.harness.data.user_data import OneVideo

    if video is not None:
        task = OneVideo.of_file(video, ask or "")
    else:
        data = choose_task(chosen.setup, chosen.choice)
        task = OneVideo.first_of(chosen.readable(data, lambda task: task.examples("heldout", 1), notice=note))
    return chosen.open(task), task.example


def _print(result: dict[str, Any]) -> None:
    say(f"question: {result['question']}" + (f"   (label: {result['label']})" if result["label"] else ""))
    for side in ("uncompressed", "compressed"):
        facts = result[side]
        say(
            f"{side:>12}: {facts['answer']!r} · {facts['visual_tokens']} visual tokens · "
            f"{facts['ttft_ms']:.1f} ms to the first token "
            f"(vision {facts['vision_ms']:.1f}, compress {facts['compress_ms']:.1f}, "
            f"prefill {facts['prefill_ms']:.1f})"
        )
    report = result["report"]
    kv = f", KV retention in decode {report['kv_ratio']:.3f}" if report["kv_ratio"] is not None else ""
    if report["kv_full_bytes"]:
        resident, full = (report[name] / 2**20 for name in ("kv_resident_bytes", "kv_full_bytes"))
        kv += f", {resident:.1f} of {full:.1f} MiB visual KV resident"
    say(
        f"{report['policy']}: kept {report['attained_ratio']:.3f} of the visual tokens{kv}; {result['speedup']:.2f}x "
        f"as fast (median of {result['requests']} requests each, one after the other)"
    )
    for line in report["notes"]:
        say(f"note: {line}")


def _warn_unknown_words(question: str, session: "Session") -> None:
    """Warn of words that a bundled model does not know: such a question gets no sensible answer."""
    bundled = session.loaded.choice.bundled
    if bundled is None:
        return
    from vidsieve.bundled.words import QUESTIONS

    words = re.findall(r"\w+|[^\w\s]+", question.lower())
    unknown = sorted({word for word in words if word not in bundled.shape.vocabulary})
    if unknown:
        complain(
            f"the bundled model does not know {', '.join(map(repr, unknown))}. It was taught questions like: "
            f"{'; '.join(QUESTIONS[kind] for kind in bundled.shape.kinds[:4])}.",
            kind="warning",
        )
