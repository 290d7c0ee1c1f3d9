"""PyramidDrop: at several depths, the visual tokens that the prompt's last token attends to most go on."""

from collections.abc import Callable

from pydantic import Field

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Scores
from vidsieve.framework.records import LayerTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.prune_depth import AFTER, prune_after


class PyramidDrop(Stage):
    """Keep fewer and fewer visual tokens over the depth: those the last prompt token would attend to next.

        score of token j = mean over heads of A'[last, j]      after the s-th of these layers
        tokens that go on = int(N * keep_ratio ** s)           of the N that came to the first

    A' is the attention of the *coming* layer (its norm, queries and keys on the sequence before the cut), not that
    of the layer just run, which some ports read. Counts follow from the first N, so they do not compound rounding.
    All frames are one block; a frame budget made by an earlier stage shares each count over frames.

    The paper prunes before layers 8, 16 and 24 of 32, which is `after: [7, 15, 23]`, with keep_ratio (its λ) 0.5.

    Source: PyramidDrop, arXiv 2410.17247, and its code (github.com/Cooperx521/PyramidDrop at 6444f30).
    """

    reads_if_made = ("budget",)
    solves = "keep_ratio"

    keep_ratio: float | None = tunable(
        None, low=0.0, high=1.0, help="tokens that go on ÷ offered at each point, the paper's λ; left out, it is solved"
    )
    after: tuple[int | float, ...] = Field((0.0625, 0.25, 0.5), min_length=1, description=AFTER)

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return prune_after("pyramiddrop.prune", self.after, num_layers)

    def leaves(self, offered: int, num_layers: int) -> tuple[int, ...]:
        assert self.keep_ratio is not None, "the core asks when the setting is given or solved"
        ratio = self.keep_ratio
        # not plans.tokens_to_keep: the paper's code truncates the float product
        return tuple(max(1, int(offered * ratio**turn)) for turn in range(1, len(self.after) + 1))

    @hookimpl
    def prune_layer(self, tokens: LayerTokens) -> Scores:
        return Scores(tokens.attention("last", of="next").float().mean(dim=(0, 1)))


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("pyramiddrop.prune", PyramidDrop)
