from torch.nn.functional import cosine_similarity

from vidsieve import Segments, Stage, VideoTokens, hookimpl, tunable


class SceneCuts(Stage):
    """Start a new segment where the mean feature of a frame turns away from that of the frame before."""

    similarity: float = tunable(0.8, low=0.0, high=1.0, help="cosine similarity below which a cut is seen")

    @hookimpl
    def segment_frames(self, tokens: VideoTokens) -> Segments:
        living = tokens.features.float().masked_fill(~tokens.keep[..., None], 0.0).sum(dim=1)
        cut = cosine_similarity(living[1:], living[:-1], dim=-1) < self.similarity
        labels = tokens.frame_index.new_zeros(len(living))
        labels[1:] = cut.cumsum(dim=0)
        return Segments(labels=labels)


@hookimpl
def register_stages(register):
    register("scene-cuts", SceneCuts)
