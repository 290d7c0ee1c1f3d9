"""Read an example's frames, sampled as the workload says; decoded files are cached while memory allows."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from vidsieve.framework.errors import DataError
from vidsieve.framework.task import Example

if TYPE_CHECKING:
    from vidsieve.harness.model_choice import Choice
    from vidsieve.harness.setup import Setup
    from vidsieve.media.clip import Clip

DEFAULT_FRAMES = 16
CACHE_BYTES = 512 << 20


class FrameCache:
    """Keep the most recently used items, up to a number of bytes; a larger item is not kept."""

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._items: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def get(self, key: Hashable) -> Any | None:
        """Return the item, which now counts as used; None if it is not here."""
        if key not in self._items:
            return None
        self._items.move_to_end(key)
        return self._items[key][0]

    def put(self, key: Hashable, item: Any, size_bytes: int) -> None:
        """Keep an item that is not here yet, and drop the least recently used ones."""
        if size_bytes > self._most_bytes or key in self._items:
            return
        self._items[key] = (item, size_bytes)
        self._bytes += size_bytes
        while self._bytes > self._most_bytes:
            self._bytes -= self._items.popitem(last=False)[1][1]

    def drop(self, key: Hashable) -> None:
        """Forget an item, if it is here."""
        if key in self._items:
            self._bytes -= self._items.pop(key)[1]


class ClipReader:
    """Clips of `frames` frames, or of `fps` frames a second; in-memory frames are thinned the same way."""

    def __init__(self, frames: int | None, fps: float | None) -> None:
        self.frames, self.fps = frames, fps
        self._clips = FrameCache()

    @classmethod
    def of(cls, setup: "Setup", choice: "Choice") -> "ClipReader":
        """Read as `setup` says; left out, the bundled model's own frame count, or 16 frames."""
        frames = setup.frames
        if frames is None and setup.fps is None:
            frames = choice.bundled.frame_count if choice.bundled else DEFAULT_FRAMES
        return cls(frames, setup.fps)

    def clip(self, example: Example, *, fresh: bool = False) -> "Clip":
        """Read the example's clip; `fresh` decodes the file again, as a timed request must."""
        if example.video is None:
            return self._in_memory(example)
        kept = None if fresh else self._clips.get(example.video)
        if kept is not None:
            return kept
        from vidsieve.media import read_video

        clip = read_video(example.video, frames=self.frames, fps=self.fps)
        if not fresh:
            self._clips.put(example.video, clip, clip.frames.nbytes)
        return clip

    def ends(self, example: Example) -> "Clip":
        """Read the first and the last frame of the example's clip, from its file."""
        from vidsieve.media import read_ends

        assert example.video is not None
        return read_ends(example.video, frames=self.frames, fps=self.fps)

    def _in_memory(self, example: Example) -> "Clip":
        from vidsieve.media import Clip
        from vidsieve.media.frame_table import sample_by_count

        if example.frames is None or not example.fps:
            raise DataError(f"example {example.id!r}: has neither a video nor frames with fps; give one of them.")
        total = len(example.frames)
        wanted = self.frames if self.fps is None else max(1, int(total / example.fps * self.fps))
        index = sample_by_count(total, wanted or total)
        fps = example.fps * len(index) / total
        return Clip.from_frames(example.frames[index], fps=fps, source=example.id)
