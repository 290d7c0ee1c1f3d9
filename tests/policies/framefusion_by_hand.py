"""FrameFusion's merging, token by token."""

from torch import Tensor
from torch.nn.functional import cosine_similarity


def by_hand(states: Tensor, place: list[int], similarity: float, most: int) -> list[int]:
    """Place by place, token by token: who melts into whom."""
    like: dict[int, float] = {}
    before: dict[int, int] = {}
    for i, at in enumerate(place):
        if at in before:
            like[i] = float(cosine_similarity(states[before[at]], states[i], dim=0))
        before[at] = i
    melts = sorted((i for i in like if like[i] >= similarity), key=lambda i: (-like[i], place[i], i))[:most]
    into, front = list(range(len(place))), {}
    for i, at in enumerate(place):
        if i not in melts:
            front[at] = i
        into[i] = front[at]
    return into
