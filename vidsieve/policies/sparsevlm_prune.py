"""SparseVLM: at several depths, visual tokens that relevant text attends to go on; some of the rest are recycled."""

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep, Merge
from vidsieve.framework.records import LayerTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.prune_depth import AFTER, prune_after
from vidsieve.policies.shared.sparsevlm import Distance, pruned, recycled, relevance


class SparseVLM(Stage):
    """Keep the visual tokens that relevant words attend to, fewer at each depth; melt the best of the rest.

    Words of the text after the video that are like it more than average (by their input embeddings) rate the visual
    tokens by the attention they pay them. Of v tokens, k go on:

        k = min(int(scale * share[s] * N), v − 1)      N tokens came to the first of these layers

    Of the others, `int(0.3 (v − k)) + 1` melt into a tenth as many means, which count as visual tokens from then on.
    The default shares are the code's table for 192 of 576 tokens; `scale: 1` gives its counts. With `melted: behind`
    the means stand behind all other visual tokens, as in the code; else each stands at its cluster's centre. All
    frames are one block; a frame budget made by an earlier stage shares k over frames.

    SparseVLM+ is `recycle: false` with `distance` and `heads`: attention is divided by what the rotary embedding alone
    puts between a word and a visual token, and the heads that attend most to the video score alone. That weight falls
    with the distance and turns negative on long prompts (for heads of 128 channels and a rotary base of 10,000 from
    some 670 tokens on), where scores change sign; `distance: bounded` divides by a tenth of its largest value at least.

    Source: SparseVLM, arXiv 2410.04417, and its code (github.com/Gumpest/SparseVLMs at 26a5f48), version 1, and
    version 2 for SparseVLM+ (its sections 4.2 and 4.3; there 14 heads, half of the 28 of Qwen2-7B).
    """

    reads_if_made = ("budget",)
    solves = "scale"

    scale: float | None = tunable(
        None, low=0.0, high=4.0, help="multiplies the shares; left out, it is solved for the retention ratio"
    )
    shares: tuple[float, ...] = Field(
        (300 / 576, 200 / 576, 110 / 576), min_length=1, description="tokens that go on ÷ all, one share a prune point"
    )
    after: tuple[int | float, ...] = Field((0.094, 0.219, 0.5), min_length=1, description=AFTER)
    recycle: bool = Field(True, description="melt the best of the tokens that leave, instead of dropping them all")
    melted: Literal["centre", "behind"] = Field("centre", description="where melted tokens stand in the sequence")
    distance: Distance | None = Field(
        None, description="divide attention by the rotary weight of its distance: bounded, or as the released code does"
    )
    heads: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="heads that score, those most on the video: a number, or a fraction of all; left out, all",
    )

    def layers(self, num_layers: int) -> tuple[int, ...]:
        if len(self.after) != len(self.shares):
            raise PolicyError(
                f"sparsevlm.prune: {len(self.after)} layers in after, {len(self.shares)} shares; give each layer one."
            )
        return prune_after("sparsevlm.prune", self.after, num_layers)

    def leaves(self, offered: int, num_layers: int) -> tuple[int, ...]:
        alive, left = offered, []
        for turn in range(len(self.shares)):
            count = self._count(offered, alive, turn)
            alive = count + (recycled(alive - count)[1] if self.recycle and alive > count else 0)
            left.append(alive)
        return tuple(left)

    def _count(self, offered: int, alive: int, turn: int) -> int:
        """How many of `alive` tokens are kept as they are."""
        assert self.scale is not None, "the core asks when the setting is given or solved"
        # a table of whole numbers must come back whole: 110 / 576 * 576 is below 110 in floats
        wanted = int(round(self.scale * self.shares[turn] * offered, 6))
        return max(1, min(wanted, alive - 1))

    @hookimpl
    def prune_layer(self, tokens: LayerTokens) -> Keep | Merge:
        _, scores = relevance(tokens, distance=self.distance, heads=self.heads)
        count = self._count(tokens.offered, len(scores), tokens.turn)
        return pruned(tokens, scores, count, recycle=self.recycle, behind=self.melted == "behind")


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("sparsevlm.prune", SparseVLM)
