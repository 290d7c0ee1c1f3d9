"""FastV: after an early decoder layer, the visual tokens that the prompt's last token attends to most go on."""

from collections.abc import Callable

from pydantic import Field

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Scores
from vidsieve.framework.records import LayerTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.prune_depth import AFTER, prune_after


class FastV(Stage):
    """Keep the visual tokens that the last prompt token attends to most in an early decoder layer.

        score of token j = mean over heads of A[last, j]

    with A the softmaxed attention of the layer after which tokens are dropped, over all tokens of the prompt. The
    layers behind never see the others. Of N tokens `round(keep_ratio * N)` go on (half to even, as the paper's code
    rounds). All frames are one block; a frame budget made by an earlier stage shares the count over frames.

    The paper's K is the first layer that sees fewer: K = 2 is `after: 1`. Its text speaks of the attention a token
    receives from all others; its code, and this, read the last row alone.

    Source: FastV, arXiv 2403.06764, and its code (github.com/pkunlp-icler/FastV at d165972).
    """

    reads_if_made = ("budget",)
    solves = "keep_ratio"

    keep_ratio: float | None = tunable(
        None, low=0.0, high=1.0, help="tokens that go on ÷ offered, 1 − the paper's R; left out, it is solved"
    )
    after: int | float = Field(0.0625, ge=0, description=AFTER)

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return prune_after("fastv.prune", (self.after,), num_layers)

    def leaves(self, offered: int, num_layers: int) -> tuple[int, ...]:
        assert self.keep_ratio is not None, "the core asks when the setting is given or solved"
        return (max(1, round(offered * self.keep_ratio)),)

    @hookimpl
    def prune_layer(self, tokens: LayerTokens) -> Scores:
        return Scores(tokens.attention("last", of="previous").float().mean(dim=(0, 1)))


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("fastv.prune", FastV)
