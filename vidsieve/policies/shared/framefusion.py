"""FrameFusion's merging: a token melts into the one at its place in the frame before, if they are alike.

    s_i = cosine of token i and the living token before it at the same place of a frame
    i melts if s_i is at least the threshold; of a run of such tokens all melt into the token in front of the run

Source: FrameFusion, arXiv 2501.01986, and its code (github.com/thu-nics/FrameFusion at 275c7e7). Means are those of the
tokens as they are, whatever number of originals they stand for.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity


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
