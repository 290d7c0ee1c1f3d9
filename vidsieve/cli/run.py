"""`vidsieve run`: one video, one question, with and without the policy."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsieve.cli.asked_policy import AskedPolicy
from vidsieve.cli.options import Json
from vidsieve.cli.output import complain, note, say, say_json
from vidsieve.cli.told import first_line
from vidsieve.cli.warned import warn_differences, warn_unknown_words
from vidsieve.framework.errors import UsageError
from vidsieve.harness.setup import Setup

if TYPE_CHECKING:
    from vidsieve.framework.policy.policy import Policy
    from vidsieve.framework.task import Example
    from vidsieve.harness.session import Chosen, Session

TIMED = 5


def run(
    setup: Setup,
    asked: AskedPolicy,
    video: Annotated[
        str | None,
        typer.Argument(metavar="[VIDEO]", help="A video file; left out: the first held-out example of the data."),
    ] = None,
    ask: Annotated[str | None, typer.Argument(metavar="[QUESTION]", help="What to ask about it.")] = None,
    json: Json = False,
) -> None:
    """Answer a question about a video with and without a policy; tells tokens and milliseconds."""
    _check(setup, video, ask)
    from vidsieve.harness.session import choose_for

    chosen = choose_for(asked.load, setup)
    session, example = _open(chosen, video, ask)
    policy = chosen.policy
    if chosen.choice.note:
        note(chosen.choice.note)
    (note if json else say)(first_line(session, video or example.id))
    warn_differences(policy, session)
    warn_unknown_words(example.question, session)
    told = {"question": example.question, "label": example.answer, **measure(session, policy, example)}
    for notice in session.bench.notices:
        complain(notice, kind="warning")
    say_json(told) if json else _tell(told)


def _check(setup: Setup, video: str | None, ask: str | None) -> None:
    """A video needs a question and no other data. Raises UsageError."""
    if video is None:
        return
    if ask is None or not ask.strip():
        raise UsageError('run: give a question after the video, such as: vidsieve run clip.mp4 "What happens?"')
    for name in ("data", "videos", "rung"):
        if getattr(setup, name) is not None:
            raise UsageError(f"--{name}: chooses what to ask about, but a video was given; leave one of them out.")


def _open(chosen: "Chosen", video: str | None, ask: str | None) -> "tuple[Session, Example]":
    """A session on the one example that is asked."""
    from vidsieve.harness.data.single_video import OneVideo
    from vidsieve.harness.data.task_choice import choose_task

    if video is not None:
        task = OneVideo.of_file(video, ask or "")
    else:
        data = choose_task(chosen.setup, chosen.choice)
        task = OneVideo.first_of(chosen.readable(data, lambda task: task.examples("heldout", 1), notice=note))
    return chosen.open(task), task.example


def measure(session: "Session", policy: "Policy", example: "Example") -> dict[str, Any]:
    """Answers, tokens and the median of a few interleaved timings. The answers come first: they also warm up."""
    from statistics import median

    bench = session.bench
    base, _ = bench.answer(None, example)
    answer, report = bench.answer(policy, example)
    assert report is not None
    times: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for _ in range(TIMED):
        for compressed in (False, True):
            times[compressed].append(dict(bench.timed(policy if compressed else None, 0, "ttft")))
    parts = {side: {name: median(t[name] for t in runs) for name in runs[0]} for side, runs in times.items()}
    return {
        "uncompressed": {"answer": base, "visual_tokens": report.baseline_tokens, **parts[False]},
        "compressed": {"answer": answer, "visual_tokens": report.kept_tokens, **parts[True]},
        "speedup": parts[False]["ttft_ms"] / parts[True]["ttft_ms"],
        "same_answer": base == answer,
        "report": report.to_dict(),
    }


def _tell(told: dict[str, Any]) -> None:
    say(f"question: {told['question']}" + (f"   (label: {told['label']})" if told["label"] else ""))
    for side in ("uncompressed", "compressed"):
        facts = told[side]
        say(
            f"{side:>12}: {facts['answer']!r} · {facts['visual_tokens']} visual tokens · "
            f"{facts['ttft_ms']:.1f} ms to the first token "
            f"(vision {facts['vision_ms']:.1f}, compress {facts['compress_ms']:.1f}, "
            f"prefill {facts['prefill_ms']:.1f})"
        )
    report = told["report"]
    kv = f", KV retention in decode {report['kv_ratio']:.3f}" if report["kv_ratio"] is not None else ""
    say(
        f"{report['policy']}: kept {report['attained_ratio']:.3f} of the visual tokens{kv}; {told['speedup']:.2f}x as "
        f"fast (median of {TIMED} requests each, one after the other)"
    )
    for line in report["notes"]:
        say(f"note: {line}")
