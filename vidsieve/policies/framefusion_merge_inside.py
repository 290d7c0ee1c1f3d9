"""FrameFusion, inside the language model: tokens that have become like those of the frame before melt into them."""

from collections.abc import Callable

import torch
from pydantic import Field

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Merge
from vidsieve.framework.records import LayerTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.framefusion import melting, runs
from vidsieve.policies.shared.prune_depth import AFTER, prune_after


class FrameFusionMergeInside(Stage):
    """Melt, behind shallow layers, each visual token into the living one before it at its place, where they are alike.

    A run of alike tokens becomes the mean of their hidden states, at the first one's place and position. The count
    depends on the content; with a retention ratio no fewer tokens stay than every coming layer may have if all layers
    together are to meet it. A stage that prunes may follow and take what is still too many.

    The code merges between attention and MLP, and goes on, layer by layer, until less than a tenth melts; here it is
    behind whole layers, as many as `after` names.

    Source: FrameFusion, arXiv 2501.01986, and its code (github.com/thu-nics/FrameFusion at 275c7e7).
    """

    data_dependent = True
    optional = True

    similarity: float = tunable(0.6, low=0.0, high=1.0, help="cosine from which tokens melt")
    after: tuple[int | float, ...] = Field((0.036, 0.072), min_length=1, description=AFTER)

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return prune_after("framefusion.merge-inside", self.after, num_layers)

    @hookimpl
    def prune_layer(self, tokens: LayerTokens) -> Merge:
        alive = len(tokens.hidden)
        into = runs(tokens.hidden, tokens.token, self.similarity, melting(alive, tokens.afford))
        source = torch.arange(alive, device=into.device)
        return Merge(source, into, weight=torch.ones(alive, device=into.device))


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("framefusion.merge-inside", FrameFusionMergeInside)
