"""Which examples a child already has: pixels need to go through the pipe only once."""

from collections.abc import Sequence

from vidsieve.framework.task import Example
from vidsieve.harness.process.messages import Given

MOST_BYTES = 1 << 30


class SentExamples:
    """Remembers what a child was given, up to `most_bytes` of pixels; what comes later is sent every time."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self.clear()

    def clear(self) -> None:
        """A fresh child has nothing."""
        self._bytes = 0
        # the examples are held, so that no other object can come to have the same id
        self._numbers: dict[int, tuple[int, Example]] = {}

    def items(self, examples: Sequence[Example]) -> list[int | Given]:
        """The examples as they are sent: by number where the child has them."""
        return [self._item(example) for example in examples]

    def _item(self, example: Example) -> int | Given:
        if id(example) in self._numbers:
            return self._numbers[id(example)][0]
        size = example.frames.nbytes if example.frames is not None else 0
        if self._bytes + size > self._most_bytes:
            return Given(None, example)
        self._bytes += size
        number = len(self._numbers)
        self._numbers[id(example)] = (number, example)
        return Given(number, example)
