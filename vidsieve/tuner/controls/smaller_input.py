"""`SmallerInput`: the control that gives the uncompressed model less video instead of removing tokens from it."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["frames", "pixels"]
NAMES: dict[Kind, str] = {"frames": "fewer-frames", "pixels": "lower-resolution"}


@dataclass(frozen=True, kw_only=True)
class SmallerInput:
    """The same request with fewer frames, or with frames of fewer pixels; stands where a policy may stand.

    `ratio` is the share of the frames, or of the pixels of each frame, that is left; above 0, at most 1.
    """

    kind: Kind
    ratio: float

    @property
    def name(self) -> str:
        """How reports call it."""
        return NAMES[self.kind]

    @property
    def hash(self) -> str:
        """Tells two treatments apart, as a policy's hash does."""
        return f"{self.kind}-{self.ratio:.6g}"
