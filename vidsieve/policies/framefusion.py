"""FrameFusion: a token melts into the one at its place in the frame before, if they are alike.

    s_i = cosine of token i and the living token before it at the same place of a frame
    i melts if s_i is at least the threshold; of a run of such tokens all melt into the token in front of the run

Source: FrameFusion, arXiv 2501.01986, and its code (github.com/thu-nics/FrameFusion at 275c7e7). Means are those of the
tokens as they are, whatever number of originals they stand for.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Merge
from vidsieve.framework.records import LayerTokens, VideoShape, VideoTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.prune_depth import AFTER, prune_after


class FrameFusionMerge(Stage):
    """Melt each visual token into the one at the same place of the frame before, where they are alike.

    A run of alike tokens becomes their mean, at the first one's place. The count depends on the content; with a
    retention ratio no fewer tokens stay than it asks for, the most alike pairs melting first. It is the step before
    the first layer; `framefusion.merge-inside` goes on behind the layers.

    Source: FrameFusion, arXiv 2501.01986, and its code (github.com/thu-nics/FrameFusion at 275c7e7).
    """

    data_dependent = True
    optional = True

    similarity: float = tunable(0.6, low=0.0, high=1.0, help="cosine from which tokens melt")

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        return (max(shape.per_frame) / shape.total if shape.total else 1.0, 1.0)

    @hookimpl
    def merge_tokens(self, tokens: VideoTokens) -> Merge:
        index = tokens.keep.flatten().nonzero().squeeze(1)
        states = tokens.features.flatten(0, 1)[index]
        ratio = tokens.retention_ratio
        most = melting(len(index), None if ratio is None else ratio * tokens.keep.numel())
        into = runs(states, index % tokens.keep.shape[1], self.similarity, most)
        return Merge(index, index[into], weight=torch.ones(len(index), device=index.device))


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


def melting(alive: int, afford: float | None) -> int:
    """How many of `alive` tokens may melt, so that no fewer stay than can be afforded; all without a limit."""
    return alive if afford is None else max(0, int(round(alive - afford, 6)))


def runs(
    states: Float[Tensor, "tokens dim"], place: Int[Tensor, " tokens"], similarity: float, most: int
) -> Int[Tensor, " tokens"]:
    """Which token each one melts into, itself if it stays; `states` in order of time, compared in float32.

    If more than `most` are alike, those most alike melt; ties go to the earlier one.
    """
    order = torch.argsort(place, stable=True)
    rows, places = states[order].float(), place[order]
    like = cosine_similarity(rows[1:], rows[:-1], dim=-1)
    like = torch.where(places[1:] == places[:-1], like, -2.0)
    like = torch.cat([like.new_full((1,), -2.0), like])
    rank = torch.empty_like(order)
    best = torch.argsort(torch.where(like >= similarity, like, -3.0), descending=True, stable=True)
    number = torch.arange(len(order), device=order.device)
    rank[best] = number
    melts = (like >= similarity) & (rank < most)
    first = torch.where(melts, 0, number).cummax(dim=0).values
    into = torch.empty_like(order)
    into[order] = order[first]
    return into


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("framefusion.merge", FrameFusionMerge)
    register("framefusion.merge-inside", FrameFusionMergeInside)
