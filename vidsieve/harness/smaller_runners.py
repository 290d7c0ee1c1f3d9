"""The same model on less video: fewer frames from the reader, or fewer pixels from the processor."""

from collections.abc import Callable
from functools import cached_property

from vidsieve.framework.errors import UsageError
from vidsieve.framework.policy.policy import Policy
from vidsieve.harness.data.clips import ClipReader
from vidsieve.harness.runner import Runner
from vidsieve.tuner.protocol import Kind, SmallerInput


class Runners:
    """The runner of the full input, and one for each smaller input, with caches of its own: nothing can mix.

    A smaller input is what `frames` (`fps`) or `max_pixels` would make of the workload. `frame_pixels` gives the
    pixels of the largest frame that latency is measured on, as the model sees it; lower resolution is a share of that.
    Only the last smaller runner is kept: the caches of the others go with them.
    """

    def __init__(self, full: Runner, frame_pixels: Callable[[], int]) -> None:
        self.full, self._frame_pixels = full, frame_pixels
        vision = getattr(full.model.config, "vision_config", None)
        sizes = (getattr(vision, name, None) for name in ("temporal_patch_size", "temporal_merge_size"))
        self._frames_per_unit = int(next((size for size in sizes if size), 1))
        self._smaller: tuple[SmallerInput, Runner] | None = None

    @cached_property
    def kinds(self) -> frozenset[str]:
        """What can be made smaller here; families of one frame size have only fewer frames."""
        return frozenset({"frames"} if self.full.processor.capped(1) is None else {"frames", "pixels"})

    def of(self, intervention: Policy | SmallerInput | None) -> Runner:
        """The runner whose inputs a treatment wants.

        Raises:
            UsageError: a ratio that is none, or fewer pixels for a family that takes every frame at one size.
        """
        if not isinstance(intervention, SmallerInput):
            return self.full
        if not 0 < intervention.ratio <= 1:
            raise UsageError(
                f"{intervention.name}: the ratio must be above 0 and at most 1, got {intervention.ratio!r}."
            )
        if intervention.kind not in self.kinds:
            family = self.full.loaded.adapter.family
            raise UsageError(f"{intervention.name}: {family} takes every frame at one size; take fewer frames instead.")
        if intervention.ratio == 1:
            return self.full
        if self._smaller is None or self._smaller[0] != intervention:
            self._smaller = None  # lets go of the old one's caches before the new one fills its own
            make: dict[Kind, Callable[[float], Runner]] = {"frames": self._fewer_frames, "pixels": self._fewer_pixels}
            self._smaller = (intervention, make[intervention.kind](intervention.ratio))
        return self._smaller[1]

    def _fewer_frames(self, ratio: float) -> Runner:
        """Whole units of what the vision tower encodes, at least one: half a unit costs as much as a whole one."""
        reader = self.full.reader
        if reader.frames is None:
            fps = None if reader.fps is None else reader.fps * ratio
            return Runner(self.full.loaded, ClipReader(None, fps))
        units = -(-reader.frames // self._frames_per_unit)
        frames = max(1, round(units * ratio)) * self._frames_per_unit
        return Runner(self.full.loaded, ClipReader(min(frames, reader.frames), None))

    def _fewer_pixels(self, ratio: float) -> Runner:
        processor = self.full.processor.capped(max(1, int(self._frame_pixels() * ratio + 1e-6)))
        return Runner(self.full.loaded, self.full.reader, processor)
