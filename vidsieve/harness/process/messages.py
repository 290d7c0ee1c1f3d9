"""What goes through the pipe.

The parent sends a `Hello`, then requests, each a tuple of a verb and its arguments: ("clip_shape", clip),
("timed", treatment, clip, metric), ("score", treatment, examples). To each the child answers with replies in order:
"value" ends a call; in scoring, any number of "item" come before "end"; "failure" ends whatever it was. While outcomes
stream, the parent may send ("stop",): the child then sends "end" at the next outcome. A stop that comes too late is
passed over. Both sides thus always know whose turn it is.
"""

from dataclasses import dataclass
from typing import Any, Literal

from vidsieve.framework.records import VideoShape
from vidsieve.framework.task import Example

STOP = ("stop",)


@dataclass(frozen=True)
class Hello:
    """What makes the bench: `factory` is "package.module:function", called with the unpickled `options`."""

    factory: str
    options: bytes


@dataclass(frozen=True)
class Facts:
    """What a bench says of itself; asked once."""

    shape: VideoShape
    offers: frozenset[str]
    clips: int
    smaller: frozenset[str]
    described: dict[str, str]
    frames_taken: tuple[int, int] | None = None


@dataclass(frozen=True)
class Warned:
    """A warning for people; `category` is a built-in one, which every process has."""

    text: str
    category: type[Warning]
    file: str
    line: int


@dataclass(frozen=True)
class Reply:
    """One answer of the child, with the warnings and the bench's notices that came up before it."""

    kind: Literal["value", "item", "end", "failure"]
    content: Any = None
    warnings: tuple[Warned, ...] = ()
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Given:
    """An example on its way, which the child keeps under `number`; later its number alone is sent."""

    number: int | None
    example: Example
