"""The page of a view: one HTML file that needs nothing else."""

import base64
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from vidsieve.report.number_format import plain
from vidsieve.view.contents import Contents
from vidsieve.view.overlay import Overlays
from vidsieve.view.sentences import depths, summary, unit_sentence
from vidsieve.view.shown_frames import blank, chosen_units, fitted, jpeg, page_width
from vidsieve.view.token_fates import Fate, Fates

if TYPE_CHECKING:
    from jinja2 import Template


MOST_WORDS = 64
MOST_PRINTED = 12


def page_html(view: Contents) -> str:
    """Write the page. Its only script moves along the time axis; without it, and on paper, every part is there."""
    shown = chosen_units(view.units)
    frames, overlays = _pictures(view, shown)
    policies = [_policy(view, index, shown) for index in range(len(view.fates))]
    printed = chosen_units(len(shown), MOST_PRINTED)
    return _template().render(
        title=view.title,
        headline=_headline(view),
        question=view.question,
        facts=[fact for fact in view.facts if fact],
        sentences=view.sentences,
        frames=frames,
        overlays=overlays,
        has_frames=view.frames is not None,
        ratio=_aspect(view),
        units=[_unit(view, int(unit)) for unit in shown],
        thinned=f"{len(shown)} of {view.units} frames are shown, evenly spread." if len(shown) < view.units else "",
        printed=printed.tolist(),
        policies=policies,
        legend=_legend(view),
        data=[[policy["said"][at] for policy in policies] for at in range(len(shown))],
    )


def _pictures(view: Contents, shown: Any) -> tuple[list[str], list[list[str]]]:
    """Each shown frame once, and each overlay once, as data URIs."""
    wide = page_width(len(shown))
    whole = [blank(view.fates[0].grid)] if view.frames is None else [fitted(view.frames[unit], wide) for unit in shown]
    frames = [_uri("jpeg", jpeg(frame)) for frame in whole]
    overlays = []
    for fates in view.fates:
        draw = Overlays(fates, _side(fates, wide))
        overlays.append([_uri("png", draw.png(int(unit))) for unit in shown])
    return frames, overlays


def _side(fates: Fates, wide: int) -> int:
    """Pixels of a token: enough for its pattern, and no more than the frame has room for."""
    return max(6, min(16, wide // max(fates.grid)))


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _aspect(view: Contents) -> str:
    """Width over height of a frame."""
    if view.frames is None:
        rows, columns = view.fates[0].grid
        return f"{columns} / {rows}"
    return f"{view.frames.shape[2]} / {view.frames.shape[1]}"


def _headline(view: Contents) -> str:
    """Say in one sentence what the page shows."""
    first = view.fates[0]
    kept = " and ".join(_kept(fates) for fates in view.fates) if len(view.fates) < 3 else f"{len(view.fates)} policies"
    name = f"{view.title}: " if view.title else ""
    if len(view.fates) >= 3:
        return f"{name}what {kept} keep of {first.baseline:,} visual tokens"
    return f"{name}{kept} of {first.baseline:,} visual tokens"


def _kept(fates: Fates) -> str:
    return f"{fates.policy} keeps {fates.attained_ratio:.1%}"


def _unit(view: Contents, unit: int) -> dict[str, Any]:
    """What the time axis says of a unit."""
    seconds = None if view.times_s is None else float(view.times_s[unit])
    return {"number": unit + 1, "time": "" if seconds is None else f"{seconds:.1f} s"}


def _policy(view: Contents, index: int, shown: Any) -> dict[str, Any]:
    """What the page says of a policy."""
    fates = view.fates[index]
    words = view.words[index] if index < len(view.words) else ()
    return {
        "name": fates.policy,
        "index": index,
        "answer": view.answers[index] if index < len(view.answers) else "",
        "asked": "" if fates.requested_ratio is None else f"{fates.requested_ratio:.1%}",
        "attained": f"{fates.attained_ratio:.1%}",
        "summary": summary(fates),
        "said": [unit_sentence(fates, int(unit)) for unit in shown],
        "skipped": [bool((fates.fate[unit] == Fate.SKIPPED).all()) for unit in shown],
        "lanes": _lanes(fates, shown, max(float(one.seen_per_unit.max()) for one in view.fates)),
        "layers": _layers(fates),
        "reads": _reads(fates, words, shown),
        "reads_behind": fates.reads_behind,
        "reads_in_all": 0 if fates.reads is None else len(fates.reads),
        "kv": "" if fates.kv_ratio is None else f"{fates.kv_ratio:.1%}",
    }


def _lanes(fates: Fates, shown: Any, most: float) -> list[dict[str, Any]]:
    """The bars along time: tokens kept, and where stages made them the frame budget and the mean score.

    `most` is how many tokens any policy keeps of a frame, so that the bars of all compare.
    """
    kept = fates.seen_per_unit[shown]
    what = "mean over the layers" if fates.by_layer else "in the prompt"
    lanes = [_lane("kept", f"Tokens of each frame, {what}", kept, 0.0, most, "{:.1f}" if fates.by_layer else "{:.0f}")]
    if fates.budget is not None:
        share = fates.budget[shown]
        lanes.append(_lane("budget", "Frame budget: share of all tokens", share, 0.0, _most(share), "{:.1%}"))
    if fates.score is not None:
        score = fates.score[shown]
        least, top = _least(score), _most(score)
        room = (top - least) or 1.0
        label = "Mean score of each frame's tokens (uniqueness), lowest to highest"
        lanes.append(_lane("score", label, score, least - 0.15 * room, top, "{:.3g}"))
    return lanes


def _lane(
    name: str, label: str, values: Float[np.ndarray, " shown"], low: float, high: float, form: str
) -> dict[str, Any]:
    """Bars between `low` and `high`, in per cent of the lane's height."""
    room = (high - low) or 1.0
    bars = [
        {"height": 0 if np.isnan(value) else round(100 * max(0.0, (value - low) / room), 1), "text": _text(value, form)}
        for value in values.tolist()
    ]
    finite = values[~np.isnan(values)]
    span = f"{form.format(finite.min())} to {form.format(finite.max())}" if finite.size else "none"
    return {"name": name, "label": f"{label}: {span}", "bars": bars}


def _text(value: float, form: str) -> str:
    return "none" if np.isnan(value) else form.format(value)


def _most(values: Float[np.ndarray, " some"]) -> float:
    return float(np.nanmax(values)) if not np.isnan(values).all() else 1.0


def _least(values: Float[np.ndarray, " some"]) -> float:
    return float(np.nanmin(values)) if not np.isnan(values).all() else 0.0


def _layers(fates: Fates) -> dict[str, Any] | None:
    """How many tokens entered each decoder layer, where layer stages ran."""
    if not fates.by_layer:
        return None
    counts = fates.entered.tolist()
    return {
        "bars": [{"layer": n, "count": c, "height": round(100 * c / fates.baseline, 1)} for n, c in enumerate(counts)],
        "drops": [f"{count:,} behind layer {layer}" for layer, count in depths(fates)],
        "label": f"Tokens entering layers 0 to {len(counts) - 1}: {', '.join(map(str, counts))}",
    }


def _reads(fates: Fates, words: tuple[str, ...], shown: Any) -> list[dict[str, Any]]:
    """A strip for each word: what share of each frame's entries the step that wrote it read."""
    if fates.reads is None:
        return []
    strips = []
    for number, row in enumerate(fates.reads[:MOST_WORDS], start=1):
        # the first word comes out of the pass over the prompt, which reads everything
        word = words[number].strip() if number < len(words) else ""
        cells = [
            {"share": 0 if np.isnan(value) else round(value, 3), "text": _text(value, "{:.0%}")}
            for value in row[shown].tolist()
        ]
        strips.append({"number": number + 1, "word": word or f"token {number + 1}", "cells": cells})
    return strips


def _legend(view: Contents) -> list[dict[str, str]]:
    """The fates that occur, each with how it looks."""
    from vidsieve.view.legend import samples

    return [{"uri": _uri("png", png), "text": text} for png, text in samples(view.fates)]


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vidsieve.view", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = plain
    return environment.get_template("view.html.j2")
