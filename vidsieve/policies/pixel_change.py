"""Frames that hardly differ from the one before are not even encoded.

Run-Length Tokenization (arXiv:2411.05222) leaves out patches whose pixels do not change from one frame to the next,
before the vision tower. Here whole units (frames, or temporal patches) are left out, because any tower whose units
are independent can do without them; the threshold on a patch becomes a ratio of units, so that counts are exact.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import KeepFrames, tokens_to_keep
from vidsieve.framework.records import FrameBatch, VideoShape
from vidsieve.framework.stage import Stage, tunable


class PixelChange(Stage):
    """Encode the units that differ most from the unit before them, the first one always.

    The difference is the mean absolute difference of the pixels, as the model is given them; ties go to the earlier
    unit. Skipped units cost neither the vision tower nor the language model anything.
    """

    solves = "keep_ratio"

    keep_ratio: float | None = tunable(
        None,
        low=0.05,
        high=1.0,
        help="units encoded ÷ units; left out, the retention ratio decides",
    )

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        if shape.total == 0:
            return (1.0, 1.0)
        if self.keep_ratio is None:
            return (1 / shape.frames, 1.0)
        kept = tokens_to_keep(shape.frames, self.keep_ratio) / shape.frames
        return (kept, kept)

    @hookimpl
    def reduce_frames(self, frames: FrameBatch) -> KeepFrames:
        units = len(frames.pixels)
        ratio = 1.0 if self.keep_ratio is None else self.keep_ratio
        count = tokens_to_keep(units, ratio) if frames.keep_budget is None else frames.keep_budget
        mask = torch.zeros(units, dtype=torch.bool, device=frames.pixels.device)
        mask[pixel_change(frames.pixels).argsort(descending=True, stable=True)[:count]] = True
        return KeepFrames(mask)


def pixel_change(pixels: Float[Tensor, "units frames channels height width"]) -> Float[Tensor, " units"]:
    """Mean absolute difference of each unit to the one before, in float32; infinite for the first."""
    values = pixels.float()
    first = torch.full((1,), torch.inf, device=pixels.device)
    return torch.cat([first, (values[1:] - values[:-1]).abs().flatten(1).mean(dim=1)])


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("pixel-change", PixelChange)
