"""Streamers see the prompt the caller gave, not the shortened one."""

from typing import Any

from jaxtyping import Int
from torch import Tensor


class OriginalPrompt:
    """Passes everything on to a streamer, with the original prompt in place of the first thing put."""

    def __init__(self, streamer: Any, ids: Int[Tensor, "rows columns"]) -> None:
        self._streamer, self._ids = streamer, ids
        self._started = False

    def put(self, value: Tensor) -> None:
        """Called by `generate` with the prompt once, then with every new token."""
        self._streamer.put(value if self._started else self._ids.cpu())
        self._started = True

    def end(self) -> None:
        """Called when nothing more comes."""
        self._streamer.end()
