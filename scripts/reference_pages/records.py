"""docs/reference/records-and-plans.md: fields with their types, read from the dataclasses."""

import dataclasses
from typing import Any

from reference_pages.markdown import blocks, doc, signature, table, tidy
from vidsieve.framework import plans, records
from vidsieve.framework.policy.file import KEYS
from vidsieve.framework.report import Report

RECORDS = (
    records.FrameBatch,
    records.VideoTokens,
    records.LayerTokens,
    records.PromptKV,
    records.DecodeStep,
    records.VideoShape,
)
PLANS = (
    plans.KeepFrames,
    plans.Segments,
    plans.Budget,
    plans.Scores,
    plans.Keep,
    plans.Merge,
    plans.KeepKV,
)

HEAD = """# Records and plans

A stage is shown a record and answers with a plan. Both are frozen dataclasses. Axes stand in the types:
`Float[Tensor, "frames tokens dim"]` is a floating-point tensor with those three axes. The core checks shape, dtype,
device and NaN of every plan. Flat indices are `frame * tokens + token`."""


def page() -> str:
    """The page."""
    parts = [HEAD, "", "## Records"]
    for kind in RECORDS:
        parts += _dataclass(kind)
    parts += ["", f"Signals a stage may ask an adapter for: {', '.join(f'`{s}`' for s in records.SIGNALS)}."]
    parts += [f"Optional inputs: {', '.join(f'`{name}`' for name in records.INPUTS)}.", "", "## Plans"]
    for kind in PLANS:
        parts += _dataclass(kind)
    parts += ["", "## From ratios to counts"]
    for function in (plans.tokens_to_keep, plans.apportion):
        name = function.__name__
        parts += ["", f"### {name}", "", "```text", signature(name, function), "```", "", blocks(doc(function))]
    parts += ["", "## Report", "", blocks(doc(Report)), ""]
    parts += table(("property", "meaning"), _properties(Report))
    assert "stages" in KEYS
    return "\n".join(parts)


def _dataclass(kind: type) -> list[str]:
    fields = [(f"`{f.name}`", f"`{type_name(f.type)}`", _default(f)) for f in dataclasses.fields(kind)]
    head = ["", f"### {kind.__name__}", "", blocks(doc(kind)), ""]
    methods = [
        f"`{kind.__name__}.{name}`: {' '.join(doc(value).split())}"
        for name, value in vars(kind).items()
        if not name.startswith("_") and isinstance(value, property | classmethod)
    ]
    return [*head, *table(("field", "type", "default"), fields), *(["", *methods] if methods else [])]


def _default(f: "dataclasses.Field[Any]") -> str:
    if f.default is not dataclasses.MISSING:
        return f"`{f.default!r}`"
    return "empty" if f.default_factory is not dataclasses.MISSING else "required"


def _properties(kind: type) -> list[tuple[str, str]]:
    named = [(name, value) for name, value in vars(kind).items() if isinstance(value, property)]
    return [(f"`{name}`", " ".join(doc(value).split())) for name, value in named]


def type_name(annotation: Any) -> str:
    """A type as written in the code; jaxtyping prints itself as <class 'jaxtyping.Float[Tensor, 'a b']'>."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", None)
    if text is None or "[" in str(annotation) or "|" in str(annotation):
        text = str(annotation)
    return tidy(text.removeprefix("<class '").removesuffix("'>")).replace("'", '"')
