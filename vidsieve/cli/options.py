"""Options that several verbs share are the fields of a dataclass; `flat` spreads them into a verb's signature."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from vidsieve.framework.settings_field import default_of, flag_of, told_of
from vidsieve.harness.setup import Setup
from vidsieve.tuner.request import Metric, TuneRequest

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="FILE", help="A Python file with stages of your own. Repeatable."),
]
MetricOption = Annotated[Metric, typer.Option("--metric", help="Latency: ttft or e2e.")]


@dataclasses.dataclass(frozen=True)
class FieldsOf:
    """In an annotation of a verb's dict parameter: the settings of this dataclass, not yet made into one."""

    kind: type


SearchSettings = Annotated[dict[str, Any], FieldsOf(TuneRequest)]
"""What a search is asked for, by the fields of `TuneRequest`."""

FLAGS = {each.name: flag_of(each) for kind in (Setup, TuneRequest) for each in dataclasses.fields(kind)}
FLAGS |= {name: f"--{name}" for name in ("devices", "study", "policies", "out", "force", "heldout", "confirm")}


def option(name: str, panel: str, help: str, metavar: str | None = None) -> Any:
    """An option under a heading of the help page."""
    return typer.Option(name, rich_help_panel=panel, help=help, metavar=metavar)


def flat(verb: Callable[..., None]) -> Callable[..., None]:
    """`verb` with every parameter that stands for the fields of a dataclass replaced by those fields.

    The fields become keyword parameters and are put together again for the call, so each option is declared once.
    """
    hints = get_type_hints(verb, include_extras=True)
    groups = {name: group for name, hint in hints.items() if (group := _group(hint)) is not None}

    @functools.wraps(verb)
    def spread(**given: Any) -> None:
        for name, (kind, whole) in groups.items():
            values = {each.name: given.pop(each.name) for each in _options(kind)}
            given[name] = kind(**values) if whole else values
        verb(**given)

    parameters = [p for each in inspect.signature(verb).parameters.values() for p in _spread(each, hints, groups)]
    # the copies that typer reads: functools.wraps left those of the verb
    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    return spread


def _group(hint: Any) -> tuple[Any, bool] | None:
    """The dataclass whose fields a parameter stands for, and whether the verb gets one or a dict of its settings."""
    if dataclasses.is_dataclass(hint):
        return hint, True
    if get_origin(hint) is Annotated and isinstance(get_args(hint)[1], FieldsOf):
        return get_args(hint)[1].kind, False
    return None


def _options(kind: Any) -> list[dataclasses.Field[Any]]:
    """The fields that are options: of a dataclass with declared settings those, of another all."""
    fields = list(dataclasses.fields(kind))
    return [each for each in fields if told_of(each) is not None] or fields


def _spread(
    parameter: inspect.Parameter, hints: dict[str, Any], groups: dict[str, tuple[Any, bool]]
) -> list[inspect.Parameter]:
    """The parameter itself, or one for each option it stands for."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    if parameter.name not in groups:
        return [parameter.replace(annotation=hints[parameter.name], kind=keyword)]
    kind = groups[parameter.name][0]
    types = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(each.name, keyword, default=default_of(each), annotation=_annotation(each, types[each.name]))
        for each in _options(kind)
    ]


def _annotation(declared: dataclasses.Field[Any], hint: Any) -> Any:
    """The field's type with its option."""
    told = told_of(declared)
    if told is None:
        return hint
    return Annotated[hint, option(flag_of(declared), told["group"], told["help"], told["metavar"])]
