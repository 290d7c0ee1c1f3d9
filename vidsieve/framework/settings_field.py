"""`setting`: a dataclass field that says what it is for, so that help pages and signatures are made from it."""

from dataclasses import MISSING, Field, field
from typing import Any


def setting(default: Any, group: str, help: str, *, metavar: str | None = None, flag: str | None = None) -> Any:
    """Declare a dataclass field with its documentation.

    Args:
        default: the field's default.
        group: the heading under which help pages list it.
        help: one sentence, with the unit of a number.
        metavar: what stands for its value on a help page.
        flag: its name on the command line, where that is not the field's own name.
    """
    declaration = {"group": group, "help": help, "metavar": metavar, "flag": flag}
    return field(default=default, metadata={"setting": declaration})


def declaration_of(declared: Field[Any]) -> dict[str, Any] | None:
    """What `setting` declares of a field; None for a field that was declared without it."""
    return declared.metadata.get("setting")


def flag_of(declared: Field[Any]) -> str:
    """The field's name on the command line, with its two hyphens."""
    declaration = declaration_of(declared) or {}
    return "--" + (declaration.get("flag") or declared.name.replace("_", "-"))


def default_of(declared: Field[Any]) -> Any:
    """The field's default; None where it has none."""
    return None if declared.default is MISSING else declared.default
