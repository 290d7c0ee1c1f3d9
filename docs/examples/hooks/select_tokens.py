from vidsieve import Keep, Stage, VideoShape, VideoTokens, hookimpl


class FirstTokens(Stage):
    """Keep the first living tokens of the video, in order, until the budget is used up."""

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        return (1 / shape.total, 1.0) if shape.total else (1.0, 1.0)

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        total = tokens.token_budget or int(tokens.keep.sum())
        place = tokens.keep.flatten().cumsum(dim=0).view_as(tokens.keep)
        return Keep(mask=tokens.keep & (place <= total), scores=-place.float())


@hookimpl
def register_stages(register):
    register("first-tokens", FirstTokens)
