from vidsieve import PromptKV, Scores, Stage, hookimpl, tokens_to_keep, tunable


class LargestValues(Stage):
    """Keep for good, in each layer's KV cache, the visual entries with the largest values."""

    keep_ratio: float = tunable(0.3, low=0.05, high=1.0, help="visual KV entries kept ÷ all")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return tuple(range(1, num_layers))

    def leaves(self, offered: int, num_layers: int) -> tuple[int, ...]:
        return (tokens_to_keep(offered, self.keep_ratio),) * len(self.layers(num_layers))

    @hookimpl
    def evict_kv(self, entries: PromptKV) -> Scores:
        return Scores(entries.entries("values").norm(dim=-1).mean(dim=1))


@hookimpl
def register_stages(register):
    register("largest-values", LargestValues)
