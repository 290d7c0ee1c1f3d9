"""`vidsieve run`: one video, one question, with and without the policy."""

from typing import Annotated, Any

import typer

from vidsieve.cli.options import Json, PolicyOptions
from vidsieve.cli.output import complain, note, say, say_json, warn_differences, warn_unknown_words, workload_line
from vidsieve.framework.errors import UsageError
from vidsieve.harness.setup import Setup


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
    from vidsieve.harness.one_request import open_one
    from vidsieve.harness.session import choose_for

    chosen = choose_for(policy_options.load, setup)
    session, example = open_one(chosen, video, ask or "", notice=note)
    policy = chosen.policy
    if chosen.choice.note:
        note(chosen.choice.note)
    (note if json else say)(workload_line(session, video or example.id))
    warn_differences(policy, session)
    warn_unknown_words(example.question, session)
    told, _ = answer_both(session.bench, policy, example)
    result = {"question": example.question, "label": example.answer, **told}
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
