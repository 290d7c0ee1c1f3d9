"""`ClipRecord`: one encoded clip with everything but its pixels, and its form as named tensors and notes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vidsieve.adapters.vision.encoded_videos import EncodedClip
from vidsieve.media import Clip
from vidsieve.media.encoder import Encoded

FORMAT = "1"
"""Of the files; a record of another one is encoded anew."""
_LEVEL, _SIGNAL, _INPUT = "level.", "signal.", "input."


@dataclass(frozen=True, eq=False, kw_only=True)
class ClipRecord:
    """What the vision side made of a clip, on the CPU, and what a prompt about it needs.

    `clip` has no pixels, `inputs` neither. `seconds` is what reading, preprocessing and encoding took.
    """

    encoded: EncodedClip
    inputs: Encoded
    clip: Clip
    seconds: float

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Give every tensor a name."""
        encoded = self.encoded
        return {
            "rows": encoded.rows,
            **{f"{_LEVEL}{number}": level for number, level in enumerate(encoded.levels)},
            **{f"{_SIGNAL}{name}": values for name, values in encoded.signals.items()},
            **{f"{_INPUT}{name}": values for name, values in self.inputs.tensors.items()},
            "timestamps_s": self.clip.timestamps_s,
            "frame_index": self.clip.frame_index,
        }

    def notes(self) -> dict[str, str]:
        """Write what is no tensor."""
        clip, inputs = self.clip, self.inputs
        facts = {
            "joined": self.encoded.joined,
            "framed": self.encoded.framed,
            "runs": [list(run) for run in inputs.runs],
            "run_frames": inputs.run_frames,
            "fps": clip.fps,
            "duration_s": clip.duration_s,
            "source_frames": clip.source_frames,
            "seconds": self.seconds,
        }
        return {"format": FORMAT, "facts": json.dumps(facts)}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], notes: Mapping[str, str], source: str) -> "ClipRecord | None":
        """Put a record together; None where it is of another format. `source` names the clip in messages."""
        if notes.get("format") != FORMAT:
            return None
        facts: dict[str, Any] = json.loads(notes["facts"])
        levels = sum(name.startswith(_LEVEL) for name in tensors)
        encoded = EncodedClip(
            rows=tensors["rows"],
            levels=tuple(tensors[f"{_LEVEL}{number}"] for number in range(levels)),
            signals=_under(_SIGNAL, tensors),
            joined=facts["joined"],
            framed=facts["framed"],
        )
        clip = Clip(
            frames=_no_pixels(len(tensors["frame_index"])),
            timestamps_s=tensors["timestamps_s"],
            fps=facts["fps"],
            duration_s=facts["duration_s"],
            source=source,
            frame_index=tensors["frame_index"],
            source_frames=facts["source_frames"],
        )
        inputs = Encoded(_under(_INPUT, tensors), facts["runs"], facts["run_frames"])
        return cls(encoded=encoded, inputs=inputs, clip=clip, seconds=facts["seconds"])


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): values for name, values in tensors.items() if name.startswith(prefix)}


def _no_pixels(frames: int) -> Tensor:
    return torch.empty(frames, 3, 0, 0, dtype=torch.uint8)


def without_frames(clip: Clip) -> Clip:
    """The clip's times and counts alone."""
    return replace(clip, frames=_no_pixels(len(clip.frames)))
