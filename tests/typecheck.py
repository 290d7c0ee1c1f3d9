"""The run-time type checker of the tests: beartype, with ints accepted where floats are asked for (PEP 484).

Axes hold within a call: "frames" is one number in all arguments and in what is returned. jaxtyping keeps that account,
and takes longer for it than the calls of a tiny model. So it is asked only where an annotation names axes; every
other function is beartype's alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ForwardRef, Literal, get_args, get_origin

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, install_import_hook

_with_axes = jaxtyping.jaxtyped
check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Any = None, *, typechecker: Callable[..., Any]) -> Any:
    """What the import hook puts on every function and class, in place of `jaxtyping.jaxtyped`."""
    if function is None:
        return partial(checked, typechecker=typechecker)
    if isinstance(function, type) or any(map(_is_deferred, function.__annotations__.values())):
        return _with_axes(function, typechecker=typechecker)
    plain = check(function)
    if any(map(_names_axes, function.__annotations__.values())):
        return _with_axes(plain, typechecker=None)
    return plain


def _is_deferred(annotation: Any) -> bool:
    """Whether it is text, which may name what exists for a static checker alone; jaxtyping knows what to do then."""
    return isinstance(annotation, str | ForwardRef) or any(map(_is_deferred, _parts(annotation)))


def _names_axes(annotation: Any) -> bool:
    named = isinstance(annotation, type) and issubclass(annotation, AbstractArray)
    return named or any(map(_names_axes, _parts(annotation)))


def _parts(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return ()
    return tuple(annotation) if isinstance(annotation, list) else get_args(annotation)


def check_annotations_of(package: str) -> None:
    """From now on, modules of the package are imported with their annotations enforced."""
    jaxtyping.jaxtyped = checked
    install_import_hook(package, "typecheck.check")
