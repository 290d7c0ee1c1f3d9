"""docs/reference/python.md: everything in `vidsieve.__all__`."""

import dataclasses
import inspect
from typing import Any

import vidsieve
from reference_pages.markdown import blocks, doc, signature, table
from reference_pages.records import type_name

HEAD = """# Public Python names

Everything that `import vidsieve` offers; each is imported when it is first used. Plans and records have a
[page of their own](records-and-plans.md)."""


def page() -> str:
    """The page."""
    names = [name for name in vidsieve.__all__ if not name.startswith("__")]
    parts = [HEAD]
    for name in sorted(names, key=lambda n: (n[0].isupper(), n)):
        parts += ["", f"## {name}", "", *_describe(name, getattr(vidsieve, name))]
    return "\n".join(parts)


def _describe(name: str, thing: Any) -> list[str]:
    if inspect.isclass(thing):
        if thing.__module__.endswith((".plans", ".records")):
            return [f"See [{name}](records-and-plans.md#{name.lower()})."]
        rows = [(f"`{member}`", what) for member, what in _members(thing)]
        return [blocks(doc(thing)), "", *_fields(thing), *table(("member", "what"), rows)]
    if callable(thing) and inspect.isfunction(inspect.unwrap(thing)):
        return ["```text", signature(name, thing), "```", "", blocks(doc(thing))]
    if name != "hookimpl":
        return [f"A `{type(thing).__name__}`: {blocks(doc(type(thing)))}"]
    return ["Marks a method or function as an implementation of a [hook](hooks.md): write `@hookimpl` above it."]


def _fields(kind: type) -> list[str]:
    """The fields of a dataclass with their types."""
    if not dataclasses.is_dataclass(kind):
        return []
    shown = [f for f in dataclasses.fields(kind) if not f.name.startswith("_") and f.name != "merges"]
    return [*table(("field", "type"), [(f"`{f.name}`", f"`{type_name(f.type)}`") for f in shown]), ""]


def _members(kind: type) -> list[tuple[str, str]]:
    """Own public methods and properties with the first paragraph of their docstring."""
    rows = []
    for name, value in vars(kind).items():
        text = doc(getattr(value, "__func__", value)).split("\n\n")[0]
        wanted = inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod)
        cached = type(value).__name__ == "cached_property"
        if name.startswith("_") or not text or not (wanted or cached):
            continue
        call = "()" if not isinstance(value, property) and not cached else ""
        rows.append((f"{name}{call}", " ".join(text.split())))
    return rows
