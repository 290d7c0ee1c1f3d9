"""Segments that end where neighbouring frames are unlike each other."""

from collections.abc import Callable

import torch
from torch.nn.functional import cosine_similarity

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Segments
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.frame_features import frame_means, labels_of, living_before


class SimilarityCuts(Stage):
    """Cut the video where neighbouring frames are least alike, and wherever they are less alike than a threshold.

    Likeness is the cosine similarity of the frames' mean features. Of all neighbours the `min_segments - 1` least
    alike are cut (ties to the earlier), and all below `threshold`. A frame without a living token joins the one
    before it.

    Source: FastVID, arXiv 2503.11187, "Dynamic Temporal Segmentation", and its code (github.com/LunarShen/FastVID at
    d9e6203, MIT), which compares the vision tower's own pooled output instead of the mean.
    """

    min_segments: int = tunable(8, low=1, high=32, help="segments at least, the paper's c")
    threshold: float = tunable(0.9, low=0.0, high=1.0, help="similarity below which a segment ends, the paper's tau")

    @hookimpl
    def segment_frames(self, tokens: VideoTokens) -> Segments:
        means, living = frame_means(tokens), tokens.keep.any(dim=1)
        before = living_before(living)
        similarity = cosine_similarity(means, means[before.clamp(min=0)], dim=-1)
        comparable = living & (before >= 0)
        similarity = similarity.masked_fill(~comparable, torch.inf)
        least = torch.zeros_like(comparable)
        least[torch.argsort(similarity, stable=True)[: self.min_segments - 1]] = True
        return Segments(labels_of(comparable & (least | (similarity < self.threshold))))


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("similarity-cuts", SimilarityCuts)
