"""VidCom²'s adaptive token compression: keep the tokens least like their video and their frame."""

from collections.abc import Callable

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Scores
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.vidcom2 import likeness


class TokenScore(Stage):
    """Score each visual token by how little it resembles the centre of its video and the centre of its frame.

    Source: VidCom², arXiv 2505.14454, "Adaptive Token Compression", and its code at 944a17d.
    """

    channel_ratio: float = tunable(0.5, low=0.125, high=1.0, help="channels compared ÷ all, the steadiest first")
    frame_weight: float = tunable(
        1.0, low=0.0, high=2.0, help="weight of likeness to the frame beside likeness to the video"
    )

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        found = likeness(tokens, self.channel_ratio)
        return Scores(-(found.video + self.frame_weight * found.frame))


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("vidcom2.token-score", TokenScore)
