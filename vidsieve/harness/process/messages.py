"""Messages of the pipe between parent and child, and how they are packed.

The parent sends a `Hello`, then requests, each a tuple of a verb and its arguments: ("clip_shape", clip),
("timed", intervention, clip, metric), ("score", intervention, examples). The child answers each with replies in order:
"value" ends a call; in scoring, any number of "item" come before "end"; "failure" ends whatever it was. While outcomes
stream, the parent may send ("stop",): the child then sends "end" at the next outcome. A stop that comes too late is
ignored. Both sides thus always know whose turn it is. Policies travel as documents, since classes of stages from lone
files cannot be pickled.
"""

import importlib
import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from types import FunctionType
from typing import Any, Literal

import torch
import yaml

from vidsieve.framework.errors import TuneError, VidsieveError
from vidsieve.framework.policy.file import read_policy
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoShape
from vidsieve.framework.registry import Registry
from vidsieve.framework.stage import cached_on_owner
from vidsieve.framework.task import Example
from vidsieve.tuner.protocol import EncodingWork, Intervention, SmallerInput

STOP = ("stop",)


@dataclass(frozen=True)
class Hello:
    """What makes the bench: `factory` is "package.module:function", called with the unpickled `options`."""

    factory: str
    options: bytes


@dataclass(frozen=True)
class Facts:
    """The facts of a bench, requested once."""

    shape: VideoShape
    offers: frozenset[str]
    clips: int
    smaller: frozenset[str]
    described: dict[str, str]
    frames_taken: tuple[int, int] | None = None
    hooks: frozenset[str] | None = None


@dataclass(frozen=True)
class Warned:
    """A warning for people; `category` is a built-in one, which every process has."""

    text: str
    category: type[Warning]
    file: str
    line: int


@dataclass(frozen=True)
class Reply:
    """One answer of the child, with the warnings and the bench's notices that came up before it.

    `encoding` is the child's work so far.
    """

    kind: Literal["value", "item", "end", "failure"]
    content: Any = None
    warnings: tuple[Warned, ...] = ()
    notices: tuple[str, ...] = ()
    encoding: EncodingWork | None = None


@dataclass(frozen=True, eq=False)
class SentExample:
    """An example on its way, which the child keeps under `number`; later its number alone is sent."""

    number: int | None
    example: Example


MOST_BYTES = 1 << 30


class SentExamples:
    """Remembers what a child was given, up to `most_bytes` of pixels; what comes later is sent every time."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self.clear()

    def clear(self) -> None:
        """Forget what was sent: a fresh child has nothing."""
        self._bytes = 0
        # the examples are referred to, so that no other object can come to have the same id
        self._numbers: dict[int, tuple[int, Example]] = {}

    def items(self, examples: Sequence[Example]) -> list[int | SentExample]:
        """List the examples as they are sent: by number where the child has them."""
        return [self._item(example) for example in examples]

    def _item(self, example: Example) -> int | SentExample:
        if id(example) in self._numbers:
            return self._numbers[id(example)][0]
        size = example.frames.nbytes if example.frames is not None else 0
        if self._bytes + size > self._most_bytes:
            return SentExample(None, example)
        self._bytes += size
        number = len(self._numbers)
        self._numbers[id(example)] = (number, example)
        return SentExample(number, example)


def pack(content: Any) -> bytes:
    """Pack `content` as bytes. Tensors travel by value, and of a view only what it shows.

    Raises:
        TypeError, AttributeError, pickle.PicklingError: something in it cannot travel.
    """
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(content)
    return buffer.getvalue()


def unpack(payload: bytes) -> Any:
    """Unpack what `pack` wrote. Raises whatever its classes raise, or ImportError where they are not there."""
    return pickle.loads(payload)


class _Pickler(pickle.Pickler):
    """Refuses what only the running script could read back; hands tensors over as arrays."""

    def reducer_override(self, content: Any) -> Any:
        if isinstance(content, type | FunctionType) and content.__module__ == "__main__":
            raise pickle.PicklingError(f"{content.__qualname__} is defined in the running script")
        if type(content) is torch.Tensor and _is_plain(content):
            return torch.from_numpy, (content.numpy(),)
        return NotImplemented


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether numpy can stand for it. Otherwise pickle would take the whole storage behind a view."""
    known = tensor.dtype in (torch.uint8, torch.int64, torch.int32, torch.bool, torch.float32, torch.float64)
    return known and tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.requires_grad


@dataclass(frozen=True)
class PolicyDocument:
    """A policy as its document. `homes` says by `use` in which module a stage's class is found, as module:name."""

    name: str
    hash: str
    text: str
    homes: dict[str, str]


def to_document(intervention: Intervention | None) -> PolicyDocument | SmallerInput | None:
    """Write an intervention as it travels between processes; provenance stays behind."""
    return _written(intervention) if isinstance(intervention, Policy) else intervention


@cached_on_owner(1)  # a policy is timed hundreds of times
def _written(policy: Policy) -> PolicyDocument:
    text = yaml.safe_dump(policy.to_dict(provenance=False), sort_keys=False, allow_unicode=True)
    classes = {bound.use: type(bound.stage) for bound in policy.stages}
    homes = {use: f"{found.__module__}:{found.__qualname__}" for use, found in classes.items()}
    return PolicyDocument(policy.name, policy.hash, text, homes)


class PolicyReader:
    """Reads what `to_document` made, each policy once. Stages that `registry` lacks are imported from their modules."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._read: dict[str, Policy] = {}

    def read(self, written: PolicyDocument | SmallerInput | None) -> Intervention | None:
        """Read the intervention, each policy once.

        Raises:
            TuneError: a stage is not there, or the document means another policy here.
        """
        if not isinstance(written, PolicyDocument):
            return written
        if written.hash not in self._read:
            self._read[written.hash] = self._parse(written)
        return self._read[written.hash]

    def _parse(self, written: PolicyDocument) -> Policy:
        where = f"policy {written.name!r} in the child process"
        for use, home in written.homes.items():
            if use not in self._registry.stages:
                self._registry.register(use, _imported(where, use, home))
        policy = read_policy(written.text, where, self._registry)
        if policy.hash != written.hash:
            raise TuneError(f"{where}: reads back as another policy ({policy.hash}, sent {written.hash}).")
        return policy


def _imported(where: str, use: str, home: str) -> Any:
    """Import a stage's class by its module and name."""
    module, _, name = home.partition(":")
    try:
        if module == "__main__":
            raise TuneError("it is defined in the running script")
        return reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, VidsieveError) as error:
        raise TuneError(
            f"{where}: stage {use!r} ({home}) is not there: {error}. Put its class in a file and give that as plugin."
        ) from None
