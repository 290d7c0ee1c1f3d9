"""DART: after an early decoder layer, the visual tokens least like a few pivots go on."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Scores
from vidsieve.framework.records import LayerTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.prune_depth import AFTER, prune_after


class DART(Stage):
    """Keep a few pivots and the visual tokens that duplicate them least.

    Pivots are the visual tokens and the words after the video whose keys have the largest L1 norm in the layer just
    run. Pivot by pivot, visual ones first and each kind in order of appearance, the tokens with the lowest cosine to
    the pivot are taken from those not taken yet; hidden states are compared behind the model's last norm. Visual
    pivots go on too, words only choose.

    Of n tokens `max(1, int(n * keep_ratio))` go on, and the pivots take equal parts, the first ones the remainder.
    `counting: released` is the code's own count: the visual pivots, and `int(n * keep_ratio / pivots)` for each of all
    pivots. All frames are one block. A frame budget made by an earlier stage shares the count: in a frame, tokens that
    were taken come first, the least like their pivot before others, then the rest, those least like any.

    The code prunes before layer 2, which is `after: 1`; the order of its pivots is that of a Python set.

    Source: DART, arXiv 2502.11494, and its code (github.com/ZichenWen1/DART), as its ports repeat it.
    """

    reads_if_made = ("budget",)
    solves = "keep_ratio"

    keep_ratio: float | None = tunable(
        None, low=0.0, high=1.0, help="tokens that go on ÷ offered; left out, it is solved"
    )
    after: int | float = Field(0.0625, ge=0, description=AFTER)
    visual_pivots: int = tunable(4, low=1, high=32, help="visual tokens that others are compared with, and that go on")
    text_pivots: int = tunable(4, low=0, high=32, help="words that visual tokens are compared with")
    counting: Literal["exact", "released"] = Field("exact", description="the share asked, or the released code's count")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return prune_after("dart.prune", (self.after,), num_layers)

    def leaves(self, offered: int, num_layers: int) -> tuple[int, ...]:
        assert self.keep_ratio is not None, "the core asks when the setting is given or solved"
        if self.counting == "exact":
            return (max(1, int(round(offered * self.keep_ratio, 6))),)
        pivots = self.visual_pivots + self.text_pivots
        return (min(offered, self.visual_pivots + pivots * int(offered * self.keep_ratio / pivots)),)

    @hookimpl
    def prune_layer(self, tokens: LayerTokens) -> Scores:
        count = self.leaves(tokens.offered, tokens.layers)[0] if tokens.count is None else tokens.count
        visual = _largest(tokens.keys("visual"), min(self.visual_pivots, count))
        words = _largest(tokens.keys("text"), self.text_pivots)
        states, text = (normalize(tokens.final_norm(rows).float(), dim=-1) for rows in (tokens.hidden, tokens.text))
        alike = states @ torch.cat([states[visual], text[words]]).T
        return Scores(_taken(alike, visual, count))


def _largest(keys: Float[Tensor, "heads rows dim"], count: int) -> Int[Tensor, " pivots"]:
    """The rows whose keys have the largest L1 norm, in order of appearance."""
    norm = keys.float().abs().sum(dim=(0, 2))
    return torch.argsort(norm, descending=True, stable=True)[:count].sort().values


def _taken(
    alike: Float[Tensor, "visual pivots"], visual: Int[Tensor, " pivoting"], count: int
) -> Float[Tensor, " visual"]:
    """Scores by which exactly the visual pivots and what the pivots take are the `count` best."""
    scores = -alike.amax(dim=1)
    free = torch.ones_like(scores, dtype=torch.bool).index_fill_(0, visual, False)
    each, more = divmod(count - len(visual), alike.shape[1])
    for number, likeness in enumerate(alike.unbind(dim=1)):
        order = torch.argsort(likeness.masked_fill(~free, torch.inf), stable=True)[: each + (number < more)]
        # cosines lie between -1 and 1: what is taken comes before what is not
        scores = scores.index_copy(0, order, 3 - likeness[order])
        free.index_fill_(0, order, False)
    return scores.index_fill(0, visual, torch.inf)


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("dart.prune", DART)
