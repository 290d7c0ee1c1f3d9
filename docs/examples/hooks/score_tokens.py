from vidsieve import Scores, Stage, VideoTokens, hookimpl, tunable


class FeatureNorm(Stage):
    """Score each visual token by the L2 norm of its feature."""

    power: float = tunable(1.0, low=0.5, high=2.0)

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        return Scores(tokens.features.float().norm(dim=-1) ** self.power)


@hookimpl
def register_stages(register):
    register("feature-norm", FeatureNorm)
