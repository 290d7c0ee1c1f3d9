"""Small pieces of Markdown that several pages use."""

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any


def cell(value: object) -> str:
    """A table cell: one line, pipes escaped, None as an empty cell."""
    return "" if value is None else " ".join(str(value).split()).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A Markdown table; nothing when there are no rows."""
    body = [f"| {' | '.join(cell(value) for value in row)} |" for row in rows]
    return [f"| {' | '.join(head)} |", "|" + " --- |" * len(head), *body] if body else []


def doc(thing: Any) -> str:
    """The docstring as Markdown: its paragraphs, indented blocks as code, `Raises:` and `Args:` lists as they are."""
    return inspect.cleandoc(thing.__doc__ or "")


def blocks(text: str) -> str:
    """A docstring's indented passages (formulas, key lists) fenced, so that Markdown leaves them alone."""
    lines: list[str] = []
    fenced = False
    for line in text.splitlines():
        indented = line.startswith("  ")
        if indented and not fenced:
            lines += ["```text"]
        if fenced and line and not indented:
            while lines and not lines[-1]:
                lines.pop()
            lines += ["```", ""]
        fenced = indented or (fenced and not line)
        lines.append(line)
    if fenced:
        lines.append("```")
    return "\n".join(lines)


def first_sentence(thing: Any) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join(doc(thing).split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s", paragraph, maxsplit=1)[0]


def signature(name: str, thing: Any, *, drop_self: bool = True) -> str:
    """`name(parameters) -> type` as written in the code, one parameter a line when it grows long."""
    shown = inspect.signature(thing)
    parameters = [p for p in shown.parameters.values() if not (drop_self and p.name in ("self", "cls"))]
    shown = shown.replace(parameters=parameters)
    text = tidy(f"{name}{shown}")
    if len(text) <= 100 or not parameters:
        return text
    inner, star = [], False
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not star:
            inner.append("*")
            star = True
        star = star or p.kind is p.VAR_POSITIONAL
        inner.append(tidy(str(p)))
    returns = "" if shown.return_annotation is shown.empty else tidy(f" -> {_plain(shown.return_annotation)}")
    return f"{name}(\n" + "".join(f"    {line},\n" for line in inner) + f"){returns}"


def _plain(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def tidy(text: str) -> str:
    """Annotations as people read them: no module paths, no quotes around forward references."""
    text = re.sub(r"(?<![\"'])\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text)
    text = re.sub(r"(?<=: )'([^']+)'|(?<=-> )'([^']+)'", lambda m: m.group(1) or m.group(2), text)
    return text.replace("NoneType", "None")
