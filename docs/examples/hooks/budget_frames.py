from vidsieve import Budget, Stage, VideoTokens, hookimpl, tunable


class RecentFirst(Stage):
    """Give later frames a larger share of the token total."""

    growth: float = tunable(2.0, low=1.0, high=8.0, log=True, help="share of the last frame ÷ share of the first")

    @hookimpl
    def budget_frames(self, tokens: VideoTokens) -> Budget:
        place = tokens.frame_index.float() / max(1, len(tokens.frame_index) - 1)
        return Budget(share=(1 + (self.growth - 1) * place) * tokens.keep.any(dim=1))


@hookimpl
def register_stages(register):
    register("recent-first", RecentFirst)
