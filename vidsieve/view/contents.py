"""What a view holds: one video under one or several policies. The ways to draw it read this."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from vidsieve.view.sentences import sentences
from vidsieve.view.token_fates import Fates


@dataclass(frozen=True, eq=False, kw_only=True)
class Contents:
    """One video under one or several policies.

    `frames` holds the first frame of each unit, or is None, `times_s` the seconds of each. `words` are, for each
    policy, the tokens it generated as text, `answers` what they make together. `title`, `question` and `facts` say
    what the video is.
    """

    fates: tuple[Fates, ...]
    frames: UInt8[np.ndarray, "units height width 3"] | None = None
    times_s: Float[np.ndarray, " units"] | None = None
    words: tuple[tuple[str, ...], ...] = ()
    answers: tuple[str, ...] = ()
    title: str = ""
    question: str = ""
    facts: tuple[str, ...] = ()

    @property
    def units(self) -> int:
        """How many units the video has."""
        return self.fates[0].units

    @property
    def sentences(self) -> list[str]:
        """What the picture cannot show, in words: policies that act nowhere visible, stages that did not run."""
        return [line for fates in self.fates for line in sentences(fates)]
