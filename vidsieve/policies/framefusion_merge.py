"""FrameFusion, before the language model: tokens that repeat the frame before melt into it."""

from collections.abc import Callable

import torch

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Merge
from vidsieve.framework.records import VideoShape, VideoTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.framefusion import melting, runs


class FrameFusionMerge(Stage):
    """Melt each visual token into the one at the same place of the frame before, where they are alike.

    A run of alike tokens becomes their mean, at the first one's place. The count depends on the content; with a
    retention ratio no fewer tokens stay than it asks for, the most alike pairs melting first. It is the step before
    the first layer; `framefusion.merge-inside` goes on behind the layers.

    Source: FrameFusion, arXiv 2501.01986, and its code (github.com/thu-nics/FrameFusion at 275c7e7).
    """

    data_dependent = True
    optional = True

    similarity: float = tunable(0.6, low=0.0, high=1.0, help="cosine from which tokens melt")

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        return (max(shape.per_frame) / shape.total if shape.total else 1.0, 1.0)

    @hookimpl
    def merge_tokens(self, tokens: VideoTokens) -> Merge:
        index = tokens.keep.flatten().nonzero().squeeze(1)
        states = tokens.features.flatten(0, 1)[index]
        ratio = tokens.retention_ratio
        most = melting(len(index), None if ratio is None else ratio * tokens.keep.numel())
        into = runs(states, index % tokens.keep.shape[1], self.similarity, most)
        return Merge(index, index[into], weight=torch.ones(len(index), device=index.device))


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("framefusion.merge", FrameFusionMerge)
