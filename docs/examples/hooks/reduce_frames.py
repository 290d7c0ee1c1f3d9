import torch

from vidsieve import FrameBatch, KeepFrames, Stage, hookimpl, tunable


class SkipStill(Stage):
    """Skip units whose pixels hardly differ from the unit before; the first is always encoded."""

    threshold: float = tunable(0.02, low=0.0, high=0.2, help="mean absolute difference, in the pixels' own units")

    @hookimpl
    def reduce_frames(self, frames: FrameBatch) -> KeepFrames:
        pixels = frames.pixels.float()
        mask = torch.ones(len(pixels), dtype=torch.bool, device=pixels.device)
        mask[1:] = (pixels[1:] - pixels[:-1]).abs().flatten(1).mean(dim=1) > self.threshold
        return KeepFrames(mask=mask)


@hookimpl
def register_stages(register):
    register("skip-still", SkipStill)
