"""Options that several verbs share are the fields of a dataclass; `flat` spreads them into a verb's signature."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="FILE", help="A Python file with stages of your own. Repeatable."),
]


def option(name: str, panel: str, help: str, metavar: str | None = None) -> Any:
    """An option under a heading of the help page."""
    return typer.Option(name, rich_help_panel=panel, help=help, metavar=metavar)


def flat(verb: Callable[..., None]) -> Callable[..., None]:
    """`verb` with every parameter whose type is a dataclass replaced by that dataclass's fields.

    The fields become keyword parameters and are put together again for the call, so each option is declared once.
    """
    hints = get_type_hints(verb, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}
    fields = {name: [f.name for f in dataclasses.fields(kind)] for name, kind in groups.items()}

    @functools.wraps(verb)
    def spread(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field: given.pop(field) for field in fields[name]})  # type: ignore[operator]
        verb(**given)

    parameters = [p for each in inspect.signature(verb).parameters.values() for p in _spread(each, hints)]
    # the copies that typer reads: functools.wraps left those of the verb
    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    return spread


def _spread(parameter: inspect.Parameter, hints: dict[str, Any]) -> list[inspect.Parameter]:
    """The parameter itself, or one for each field of its dataclass."""
    kind = hints[parameter.name]
    if not dataclasses.is_dataclass(kind):
        return [parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY)]
    types = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=types[f.name])
        for f in dataclasses.fields(kind)
    ]
