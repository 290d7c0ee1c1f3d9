"""docs/reference/cli.md: every verb and option, from the signatures that the application is made of."""

import inspect
import types
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from typer.models import ArgumentInfo

from reference_pages.markdown import table
from vidsieve.cli.app import app

HEAD = """# Commands and options

`vidsieve VERB --help` prints the same. `tune` alone is an alias of `vidsieve tune`; torchtune installs a script of that
name too, so where both are installed say `vidsieve tune`. `python -m vidsieve.cli` works as well."""


def page() -> str:
    """The page."""
    parts = [HEAD]
    for verb in app.registered_commands:
        assert verb.callback is not None
        parts += ["", f"## vidsieve {verb.name}", "", inspect.cleandoc(verb.help or ""), ""]
        arguments, options = _parameters(verb.callback)
        parts += table(("argument", "meaning"), arguments)
        parts += [""] if arguments else []
        parts += table(("option", "default", "meaning"), options)
    return "\n".join(parts)


def _parameters(callback: Callable[..., None]) -> tuple[list[tuple[str, str]], list[tuple[str, str, str]]]:
    """(name, meaning) of the arguments; (flags, default, meaning) of the options."""
    arguments, options = [], []
    for parameter in inspect.signature(callback).parameters.values():
        assert get_origin(parameter.annotation) is Annotated, f"{parameter.name} has no help"
        kind, info = get_args(parameter.annotation)[:2]
        if isinstance(info, ArgumentInfo):
            arguments.append((f"`{info.metavar or parameter.name.upper()}`", info.help or ""))
            continue
        # in an annotation typer's first argument, which it calls the default, is the first name
        names = [each for each in (info.default, *(info.param_decls or ())) if isinstance(each, str)]
        flags = ", ".join(f"`{flag}`" for flag in names or [f"--{parameter.name.replace('_', '-')}"])
        value = _value(kind, info.metavar)
        options.append((f"{flags} {value}".strip(), _default(parameter.default), info.help or ""))
    return arguments, options


def _value(kind: Any, metavar: str | None) -> str:
    """What an option takes, as a placeholder; nothing for a switch."""
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    kind = get_args(kind)[0] if get_origin(kind) is list else kind
    if kind is bool:
        return ""
    if get_origin(kind) is Literal:
        return f"`{'|'.join(get_args(kind))}`"
    name = "|".join(str(each.value) for each in kind) if issubclass(kind, Enum) else kind.__name__.upper()
    return f"`{metavar or name}`"


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    if value is None or isinstance(value, bool):
        return ""
    return f"`{getattr(value, 'value', value)}`"
