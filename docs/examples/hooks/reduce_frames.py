import torch

from vidsieve import FrameBatch, KeepFrames, Stage, hookimpl, tunable


class SkipStill(Stage):
    """Encode the units that differ from the unit before: as many as asked for, else those above a threshold."""

    data_dependent = True
    threshold: float = tunable(0.02, low=0.0, high=0.2, help="mean absolute difference, in the pixels' own units")

    @hookimpl
    def reduce_frames(self, frames: FrameBatch) -> KeepFrames:
        pixels = frames.pixels.float()
        change = torch.full((len(pixels),), torch.inf, device=pixels.device)
        change[1:] = (pixels[1:] - pixels[:-1]).abs().flatten(1).mean(dim=1)
        if frames.keep_budget is None:
            return KeepFrames(mask=change > self.threshold)
        mask = torch.zeros_like(change, dtype=torch.bool)
        mask[change.argsort(descending=True, stable=True)[: frames.keep_budget]] = True
        return KeepFrames(mask=mask)


@hookimpl
def register_stages(register):
    register("skip-still", SkipStill)
