"""DivPrune: the visual tokens that are least alike, chosen one by one."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep
from vidsieve.framework.records import VideoTokens
from vidsieve.policies.shared.counting import KeepsRatio
from vidsieve.policies.shared.greedy import Alike, Block, Field, LazyChoice, Worth, field_of, on_cpu, pick


class DivPrune(KeepsRatio):
    """Keep a set of visual tokens in which even the two most alike differ as much as possible.

        d(i, j) = 1 − cosine of features i and j
        first   = argmax over i of min over j ≠ i of d(i, j)
        next    = argmax over the others of min over those chosen of d(·, chosen)

    The greedy answer to the max-min diversity problem. It reads no scores and no text. All frames are one set, as in
    the paper's video runs; a frame budget made by an earlier stage says how many each frame gives, while the distance
    still counts over all frames. Ties go to the lower index.

    Source: DivPrune, arXiv 2503.02175, equations 2 and 3, and its code (github.com/vbdi/divprune), as its ports repeat
    it. The code counts `round(ratio * n)` tokens; here the core's exact total stands.
    """

    reads_if_made = ("budget",)

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        field = field_of(tokens, self.keep_ratio, "divprune.select")
        features = field.of(tokens.features)
        picks = _lazily(field, features, tokens.keep.shape[1]) if on_cpu(features) else _one_by_one(field, features)
        return Keep(field.mask(picks, tokens.keep))


def _one_by_one(field: Field, features: Float[Tensor, "alive dim"]) -> Int[Tensor, " picks"]:
    """The rule as it stands, without a word from the device."""
    apart = Alike(features, sign=-1.0)
    nearest = apart.nearest()

    def after(chosen: Int[Tensor, "1"], turn: int, open_: Bool[Tensor, " alive"]) -> Float[Tensor, " alive"]:
        nonlocal nearest
        row = apart.row(chosen)
        nearest = torch.minimum(nearest, row) if turn else row
        return nearest

    return pick(field, nearest, after)


def _lazily(field: Field, features: Float[Tensor, "alive dim"], per_frame: int) -> Int[Tensor, " picks"]:
    """The same picks on the CPU."""
    choice, unit = LazyChoice(field), normalize(features, dim=-1)
    if field.count:
        first = _least_alike(unit, torch.from_numpy(choice.open), per_frame)
        choice.take(first)
        return choice.run(_Distance(unit, first))
    return torch.tensor(choice.picks, dtype=torch.int64)


class _Distance(Worth):
    """What a token is worth: minus its likeness to the chosen one most like it."""

    def __init__(self, unit: Float[Tensor, "alive dim"], first: int) -> None:
        self.unit = unit
        self.values = -(unit @ unit[first]).numpy()

    def block(self, places: Int[np.ndarray, " block"]) -> "_Apart":
        unit = self.unit.index_select(0, torch.from_numpy(places))
        return _Apart(self.values[places], (unit @ unit.T).neg_().numpy())

    def settle(self, picks: Int[np.ndarray, " picks"], block: object, open_: object) -> None:
        alike = self.unit.index_select(0, torch.from_numpy(picks)) @ self.unit.T
        np.minimum(self.values, alike.amax(dim=0).neg_().numpy(), out=self.values)


class _Apart(Block):
    """Some tokens' values, and how unlike they are."""

    def __init__(self, values: Float[np.ndarray, " block"], apart: Float[np.ndarray, "block block"]) -> None:
        self.values, self.apart = values, apart

    def choose(self, place: int) -> None:
        np.minimum(self.values, self.apart[place], out=self.values)
        self.values[place] = -np.inf

    def close(self, places: Int[np.ndarray, " closing"]) -> None:
        self.values[places] = -np.inf


FEW = 32
"""Tokens whose nearest one is looked for at once."""
ROUNDING = 1e-5
"""More than two ways to work out a cosine differ by."""


def _least_alike(unit: Float[Tensor, "alive dim"], open_: Bool[Tensor, " alive"], per_frame: int) -> int:
    """The open token that is least like the other one most like it.

    Its likeness to two neighbours, in the frame and over time, is a lower bound. Tokens are looked at in the order of
    theirs, until no bound is low enough: of a video, whose tokens mostly resemble a neighbour, a small part.
    """
    bound = torch.full_like(unit[:, 0], -torch.inf)
    for step in {1, per_frame}:
        alike = (unit[step:] * unit[:-step]).sum(dim=-1)
        bound[step:], bound[:-step] = bound[step:].maximum(alike), bound[:-step].maximum(alike)
    order = bound.masked_fill(~open_, torch.inf).argsort()
    best = (np.inf, 0)
    for part in order[: int(open_.sum())].split(FEW):
        if bound[part[0]] > best[0] + ROUNDING:
            break
        alike = unit.index_select(0, part) @ unit.T
        alike.scatter_(1, part.unsqueeze(1), -torch.inf)
        nearest = alike.amax(dim=1)
        best = min(best, (float(nearest.min()), int(part[nearest == nearest.min()].min())))
    return best[1]


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("divprune.select", DivPrune)
