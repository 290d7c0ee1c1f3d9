"""What both SparseVLM stages do: text that rates the visual tokens, and what becomes of those that leave.

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

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vidsieve.framework.planning.layer_cut import best
from vidsieve.framework.plans import Keep, Merge
from vidsieve.framework.records import LayerTokens


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


Distance = Literal["bounded", "released"]
"""How SparseVLM+ divides by w: by no less than √d / 10, which is positive, or by whatever w is."""


def relevance(
    tokens: LayerTokens, *, distance: Distance | None = None, heads: int | float | None = None
) -> tuple[Float[Tensor, "raters visual"], Float[Tensor, " visual"]]:
    """Attention of each rater, averaged over heads, and its mean over raters.

    Without raters (no text after the video, or one word) the prompt's last token rates alone. With `distance` and
    `heads` it is that of SparseVLM+.
    """
    asked = raters(tokens.visual_inputs, tokens.text_inputs)
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
    centres, into = density_peaks(tokens.hidden[order].float(), clusters)
    kept = stays.nonzero().squeeze(1)
    source, target = torch.cat([kept, order]), torch.cat([kept, order[centres][into]])
    equal = torch.ones(len(source), device=scores.device)
    return Merge(source, target, weight=equal, behind=order[centres] if behind else None)


def density_peaks(
    x: Float[Tensor, "points dim"], clusters: int
) -> tuple[Int[Tensor, " clusters"], Int[Tensor, " points"]]:
    """The centres, strongest first, and which of them each point joins."""
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / x.shape[1] ** 0.5
    nearest = distance.topk(clusters, dim=-1, largest=False).values
    density = torch.exp(-nearest.square().mean(dim=-1))
    denser = density[None, :] > density[:, None]
    gap = distance.masked_fill(~denser, torch.inf).amin(dim=-1)
    gap = torch.where(gap.isinf(), distance.max(), gap)
    centres = torch.argsort(gap * density, descending=True, stable=True)[:clusters]
    into = distance[:, centres].argmin(dim=1)
    into[centres] = torch.arange(clusters, device=x.device)
    return centres, into
