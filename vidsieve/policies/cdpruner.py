"""CDPruner: the visual tokens that are relevant and unlike one another, by a determinantal point process."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import threshold

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep
from vidsieve.framework.records import VideoTokens
from vidsieve.policies.shared.counting import KeepsRatio
from vidsieve.policies.shared.greedy import Alike, field_of, on_cpu, pick

SPENT = 1e-5
"""Below this share of a token, what the chosen ones do not show of it is rounding."""


class CDPruner(KeepsRatio):
    """Keep the visual tokens that are relevant and unlike one another, by a determinantal point process.

        r = (s − min s + 1e-6) / (max s − min s)            s the scores an earlier stage made
        L = diag(r) · cosine · diag(r)
        next = argmax over i of det L on the chosen and i   = argmax of r_i² times the part of i not yet spanned

    The greedy answer to the most probable set, updated pick by pick as a Cholesky factor grows. Where all scores are
    one (no question, say) r is 1 and diversity decides alone. Where every direction is spanned (more picks than
    channels) all sets have determinant 0 and the code picks rounding noise; here the choice starts anew among the
    rest. All frames are one set; a frame budget made by an earlier stage says how many each frame gives. Ties go to
    the lower index.

    Source: CDPruner, arXiv 2506.10967, and its code (github.com/Theia-4869/CDPruner); the fast greedy MAP
    inference is that of Chen et al., arXiv 1709.05135.
    """

    reads = ("scores",)
    reads_if_made = ("budget",)

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        assert tokens.scores is not None, "the core refuses a reader before its writer"
        field = field_of(tokens, self.keep_ratio, "cdpruner.select")
        alike = Alike(field.of(tokens.features))
        quality = relevance(field.of(tokens.scores.values)).square()
        kernel = _Kernel(alike, quality, field.count)
        return Keep(field.mask(pick(field, quality, kernel.after), tokens.keep))


def relevance(scores: Float[Tensor, " alive"]) -> Float[Tensor, " alive"]:
    """Scores on the scale of the kernel, from about 0 to 1; all 1 where they do not differ."""
    finite = scores.nan_to_num(posinf=torch.finfo(torch.float32).max)
    low, high = finite.amin(), finite.amax()
    # halves, so that the range of float32 itself has a finite width
    scaled = (finite / 2 - low / 2 + 5e-7) / (high / 2 - low / 2).clamp(min=1e-30)
    return torch.where(high > low, scaled, 1.0)


class _Kernel:
    """What each token would add to the determinant, as tokens are chosen.

    `left` is the part of each unit vector that is orthogonal to those chosen, squared; `rows` holds the coordinates
    in their span, and `counted` is 0 for the rows of a span that was used up. On the CPU, where it costs nothing to
    know of that, the next span's rows begin at `start`. Sums stay those of one pick after another: near the end of a
    span what is left is a small difference, and in another order of summation rounding would choose other tokens.
    """

    def __init__(self, alike: Alike, quality: Float[Tensor, " alive"], count: int) -> None:
        self.alike, self.quality = alike, quality
        self.left = torch.ones_like(quality)
        self.rows = quality.new_zeros(count, quality.numel())
        self.counted = quality.new_ones(count)
        self.start = 0

    def after(self, chosen: Int[Tensor, "1"], turn: int, open_: Bool[Tensor, " alive"]) -> Float[Tensor, " alive"]:
        """The gains of all tokens once `chosen` is in the set."""
        before = self.rows[self.start : turn]
        mine = before.index_select(1, chosen).squeeze(1) * self.counted[self.start : turn]
        share = self.left.index_select(0, chosen).clamp(min=SPENT).rsqrt()
        new = torch.addmv(self.alike.row(chosen), before.T, mine, alpha=-1) * share
        self.rows[turn] = new
        left = threshold(torch.addcmul(self.left, new, new, value=-1), SPENT, 0.0)
        spent = (left * open_).amax(dim=0, keepdim=True) <= 0
        if on_cpu(spent):
            self.start = turn + 1 if bool(spent) else self.start
        else:
            self.counted[: turn + 1] *= ~spent
        self.left = torch.where(spent, 1.0, left)
        return self.quality * self.left


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("cdpruner.select", CDPruner)
