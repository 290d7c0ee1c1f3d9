from vidsieve import LayerTokens, Scores, Stage, hookimpl, tunable


class LastRowAttention(Stage):
    """After one layer, keep the visual tokens that the prompt's last token attends to most."""

    depth: float = tunable(0.1, low=0.05, high=0.9, help="where to prune, as a fraction of the depth")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return (max(0, round(self.depth * num_layers) - 1),)

    @hookimpl
    def prune_layer(self, tokens: LayerTokens) -> Scores:
        return Scores(tokens.attention("last", of="previous").float().mean(dim=(0, 1)))


@hookimpl
def register_stages(register):
    register("last-row-attention", LastRowAttention)
