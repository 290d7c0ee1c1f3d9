"""DivPrune: the visual tokens that are least alike, chosen one by one."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep
from vidsieve.framework.records import VideoTokens
from vidsieve.policies.shared.counting import KeepsRatio
from vidsieve.policies.shared.greedy import Alike, field_of, pick


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
        apart = Alike(field.of(tokens.features), sign=-1.0)
        nearest = apart.nearest()

        def after(chosen: Int[Tensor, "1"], turn: int, open_: Bool[Tensor, " alive"]) -> Float[Tensor, " alive"]:
            nonlocal nearest
            row = apart.row(chosen)
            nearest = torch.minimum(nearest, row) if turn else row
            return nearest

        return Keep(field.mask(pick(field, nearest, after), tokens.keep))


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("divprune.select", DivPrune)
