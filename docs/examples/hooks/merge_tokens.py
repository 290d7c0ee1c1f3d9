from itertools import zip_longest

import torch

from vidsieve import Merge, Stage, VideoShape, VideoTokens, hookimpl


class PairFrames(Stage):
    """Melt every second frame into the frame before it, token by token; a token without a partner stays."""

    data_dependent = True

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        pairs = zip_longest(shape.per_frame[0::2], shape.per_frame[1::2], fillvalue=0)
        return (sum(max(pair) for pair in pairs) / max(1, shape.total), 1.0)

    @hookimpl
    def merge_tokens(self, tokens: VideoTokens) -> Merge:
        frames, per_frame = tokens.keep.shape
        itself = torch.arange(frames * per_frame, device=tokens.keep.device).view(frames, per_frame)
        into = itself.clone()
        into[1::2] = itself[0 : frames - 1 : 2]
        into = torch.where(tokens.keep.flatten()[into], into, itself)
        return Merge.assign(torch.where(tokens.keep, into, -1))


@hookimpl
def register_stages(register):
    register("pair-frames", PairFrames)
