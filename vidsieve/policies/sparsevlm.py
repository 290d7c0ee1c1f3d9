"""SparseVLM: at several depths, visual tokens that relevant text attends to go on; some of the rest are recycled.

    G = softmax over text of (E_visual · E_textᵀ)           on the inputs of the first layer
    raters = {i : m_i > mean(m)}                            m the mean of G over visual tokens
    score of token j = mean over raters and heads of A[rater, j]

Of the tokens that leave, the `int(0.3 d) + 1` best of d are clustered into a tenth as many means by density peaks:

    ρ_i = exp(-mean of the g smallest D_ij²)                D_ij = |x_i - x_j| / √C
    δ_i = min {D_ij : ρ_j > ρ_i}, for the peak the largest D
    centres = the g largest ρ δ; every other one joins the nearest centre

Source: SparseVLM, arXiv 2410.04417, and its code (github.com/Gumpest/SparseVLMs at 26a5f48). The code averages a
cluster where the paper sums it, and adds noise of 1e-6 to ρ, which is left out here.

SparseVLM+ (the same code with USE_VERSION=2_0) divides A[rater, j] by the logit w that the rotary embedding alone puts
between their positions (that of queries and keys of ones, largest at distance 0: √d for heads of d channels), and takes
the mean over those heads alone whose attention from raters to the video is largest in sum after that.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.planning.layer_cut import best
from vidsieve.framework.plans import Keep, Merge
from vidsieve.framework.records import LayerTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.dpc_knn import distances, smallest
from vidsieve.policies.shared.prune_depth import AFTER, prune_after

Distance = Literal["bounded", "released"]
"""How SparseVLM+ divides by w: by no less than √d / 10, which is positive, or by whatever w is."""


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


class SparseVLMByRank(Stage):
    """Keep as many visual tokens as the rank of the raters' attention says; melt the best of the rest.

        k = min(int(scale * rank(P) + bias), v − 1)      P the attention of raters to v visual tokens

    In practice the rank is the number of raters, so a longer question keeps more, and later points change little.
    The count depends on the content: the policy has no retention ratio to be asked for. Raters, scores and melting
    are those of `sparsevlm.prune`. The first release has scale and bias 13.5 and 0, 9 and 6 or 0.8 and 0 after layers
    2, 6, 15 and 19; its code for video has 1 and 0 after layer 1 alone.

    Source: SparseVLM, arXiv 2410.04417, "sparsification level adaptation", and its code
    (github.com/Gumpest/SparseVLMs at 91fb6d9, and f05b898 for video).
    """

    reads_if_made = ("budget",)
    data_dependent = True

    scale: float = tunable(13.5, low=0.0, high=1000.0, help="tokens kept per unit of rank")
    bias: float = tunable(0.0, low=0.0, high=1000.0, help="tokens kept in any case")
    after: tuple[int | float, ...] = Field((2, 6, 15, 19), min_length=1, description=AFTER)
    recycle: bool = Field(True, description="melt the best of the tokens that leave, instead of dropping them all")
    melted: Literal["centre", "behind"] = Field("centre", description="where melted tokens stand in the sequence")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return prune_after("sparsevlm.prune-by-rank", self.after, num_layers)

    @hookimpl
    def prune_layer(self, tokens: LayerTokens) -> Keep | Merge:
        rows, scores = relevance(tokens)
        rank = int(torch.linalg.matrix_rank(rows))
        count = max(1, min(int(rank * self.scale + self.bias), len(scores) - 1))
        # the code leaves everything where the rank is full
        count = len(scores) if rank == len(scores) else count
        return pruned(tokens, scores, count, recycle=self.recycle, behind=self.melted == "behind")


def recycled(left: int) -> tuple[int, int]:
    """Of `left` tokens that leave: how many are candidates for recycling, and into how many they melt."""
    candidates = int(0.3 * left) + 1
    return candidates, int(candidates / 10) + 1


def raters(visual: Float[Tensor, "entered dim"], text: Float[Tensor, "words dim"]) -> Int[Tensor, " raters"]:
    """Text tokens that are more like the video than the text is on average; none where there is no text."""
    if len(text) == 0:
        return torch.zeros(0, dtype=torch.int64, device=text.device)
    mean = (visual.float() @ text.float().T).softmax(dim=-1).mean(dim=0)
    return (mean > mean.mean()).nonzero().squeeze(1)


def relevance(
    tokens: LayerTokens, *, distance: Distance | None = None, heads: int | float | None = None
) -> tuple[Float[Tensor, "raters visual"], Float[Tensor, " visual"]]:
    """Attention of each rater, averaged over heads, and its mean over raters.

    Without raters (no text after the video, or one word) the prompt's last token rates alone. With `distance` and
    `heads` it is that of SparseVLM+.
    """
    asked = tokens.once(raters)
    rows = asked if asked.numel() else "last"
    attention = tokens.attention(rows, of="previous").float()
    if distance is not None:
        attention = attention / _divisor(tokens.rotary(rows), tokens.keys("visual").shape[-1], distance)
    if heads is not None:
        attention = attention[leading_heads(attention, heads)]
    each = attention.mean(dim=0)
    return each, each.mean(dim=0)


def _divisor(
    rotary: Float[Tensor, "raters visual"], head_dim: int, distance: Distance
) -> Float[Tensor, "raters visual"]:
    """What attention is divided by; never zero, which would make it infinite."""
    if distance == "bounded":
        return rotary.clamp(min=head_dim**0.5 / 10)
    return torch.where(rotary.abs() < 1e-6, 1e-6, rotary)


def leading_heads(attention: Float[Tensor, "heads raters visual"], heads: int | float) -> Int[Tensor, " leading"]:
    """The heads that attend to the video most, the first one most; `heads` is a number (all where there are fewer) or
    a fraction of all, and one at least.
    """
    count = max(1, round(heads * len(attention))) if isinstance(heads, float) else heads
    return attention.sum(dim=(1, 2)).argsort(descending=True, stable=True)[:count]


def pruned(
    tokens: LayerTokens, scores: Float[Tensor, " visual"], count: int, *, recycle: bool, behind: bool
) -> Keep | Merge:
    """The `count` best stay; with `recycle` some of the others melt into a few that stand at their centres' places.

    With `behind` the melted ones move behind the video's other tokens, the strongest centre first.
    """
    stays = best(scores, tokens, count)
    left = len(scores) - count
    if not recycle or left < 1:
        return Keep(stays, scores=scores)
    candidates, clusters = recycled(left)
    order = torch.argsort(scores.masked_fill(stays, -torch.inf), descending=True, stable=True)[:candidates]
    # centres come in the order of their strength; `into` numbers candidates
    centres, into = density_peaks(tokens.hidden.index_select(0, order).float(), clusters)
    kept = stays.nonzero().squeeze(1)
    source, target = torch.cat([kept, order]), torch.cat([kept, order[centres][into]])
    equal = torch.ones(len(source), device=scores.device)
    return Merge(source, target, weight=equal, behind=order[centres] if behind else None)


def density_peaks(
    x: Float[Tensor, "points dim"], clusters: int
) -> tuple[Int[Tensor, " clusters"], Int[Tensor, " points"]]:
    """The centres, strongest first, and which of them each point joins."""
    distance = distances(x.unsqueeze(0)).squeeze(0)
    density = torch.exp(-smallest(distance, clusters).square().mean(dim=-1))
    denser = density[None, :] > density[:, None]
    gap = distance.masked_fill(~denser, torch.inf).amin(dim=-1)
    gap = torch.where(gap.isinf(), distance.max(), gap)
    centres = torch.argsort(gap * density, descending=True, stable=True)[:clusters]
    into = distance[:, centres].argmin(dim=1)
    into[centres] = torch.arange(clusters, device=x.device)
    return centres, into


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("sparsevlm.prune", SparseVLM)
    register("sparsevlm.prune-by-rank", SparseVLMByRank)
