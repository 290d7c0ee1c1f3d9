"""V2Drop: at several depths, the visual tokens that a layer changed most go on."""

from collections.abc import Callable

from pydantic import Field

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Scores
from vidsieve.framework.records import LayerTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.prune_depth import AFTER, prune_after


class V2Drop(Stage):
    """Keep fewer and fewer visual tokens over the depth: those that the layer just run changed most.

        score of token j = |x_j after the layer − x_j before it|₂        after the s-th of these layers
        tokens that go on = int(N * keep_ratio ** s)                     of the N that came to the first

    No attention is read, so it asks nothing of the kernel. With `leave_one` a single token goes on behind the last of
    these layers, as in the released code, whose last ratio is 0. All frames are one block; a frame budget made by an
    earlier stage shares each count over frames.

    The code prunes before layers 3, 17 and 22 of 32, which is `after: [2, 16, 21]`, by a half each time.

    Source: V2Drop, arXiv 2509.01552, and its code (github.com/xuyang-liu16/V2Drop at 89eddbb). There the change is
    measured in the model's dtype, here in float32.
    """

    reads_if_made = ("budget",)
    solves = "keep_ratio"

    keep_ratio: float | None = tunable(
        None, low=0.0, high=1.0, help="tokens that go on ÷ offered at each point; left out, it is solved"
    )
    after: tuple[int | float, ...] = Field((0.094, 0.531, 0.6875), min_length=1, description=AFTER)
    leave_one: bool = Field(False, description="a single visual token goes on behind the last of these layers")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return prune_after("v2drop.prune", self.after, num_layers)

    def leaves(self, offered: int, num_layers: int) -> tuple[int, ...]:
        assert self.keep_ratio is not None, "the core asks when the setting is given or solved"
        ratio = self.keep_ratio
        # not plans.tokens_to_keep: the code truncates the float product
        counts = [max(1, int(offered * ratio**turn)) for turn in range(1, len(self.after) + 1)]
        return (*counts[:-1], 1) if self.leave_one else tuple(counts)

    @hookimpl
    def prune_layer(self, tokens: LayerTokens) -> Scores:
        return Scores((tokens.hidden.float() - tokens.hidden_before.float()).norm(dim=-1))


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("v2drop.prune", V2Drop)
