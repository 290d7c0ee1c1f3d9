"""STC's pruner: a token matters if it is unlike its own frame and unlike what the stream has shown so far."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Scores
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage, tunable

BANDWIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)


class StreamNovelty(Stage):
    """Score each visual token by how little it resembles its frame and the running mean of all frames up to it.

    With x' = x / |x|:
        K(x', g) = sum over a of exp(-|x' - g|² / 2a),  a in {1/8, 1/4, 1/2, 1, 2}
        score    = -(K(x', mean of x' in its frame) + memory_weight * K(x', m / |m|))
    where m is the mean of the frames' mean features, from the first frame of the stream to this one. Between chunks
    only the sum of those means and their number are kept (one vector), so a stream of any length may be planned, and
    how it is cut into chunks changes no score.

    Source: STC, arXiv 2512.00891, as its code computes it (github.com/lern-to-write/STC, model/prune.py at 27efcfc,
    no licence file found; nothing taken from it but the formula). Other than there, memory is brought up to date
    frame by frame, not chunk by chunk (the same for chunks of one frame), and all channels are compared: its code
    picks the steadier half of each chunk, another half each time, and mixes them in memory. Its STC-Cacher, which
    reuses features inside the vision tower, is not here.
    """

    memory_weight: float = tunable(
        1.0, low=0.0, high=4.0, help="weight of likeness to the stream so far beside likeness to the frame"
    )

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        mass = torch.where(tokens.keep, tokens.weight.float(), 0.0).unsqueeze(-1)
        living = tokens.living_features
        unit = normalize(living, dim=-1)
        frame_mass = mass.sum(dim=1, keepdim=True)
        frame = (unit * mass).sum(dim=1, keepdim=True) / frame_mass.clamp(min=1.0)
        means = (living * mass).sum(dim=1) / frame_mass.squeeze(1).clamp(min=1.0)
        # a frame with nothing alive is no part of what was seen
        counts = (frame_mass.reshape(-1) > 0).float()
        before = tokens.state or {"sum": torch.zeros_like(means[0]), "frames": torch.zeros_like(counts[0])}
        total = before["sum"].to(means) + means.cumsum(dim=0)
        number = before["frames"].to(means) + counts.cumsum(dim=0)
        memory = normalize(total / number.clamp(min=1.0).unsqueeze(-1), dim=-1).unsqueeze(1)
        likeness = _likeness(unit, frame) + self.memory_weight * _likeness(unit, memory)
        return Scores(-likeness, state={"sum": total[-1], "frames": number[-1]})


def _likeness(
    unit: Float[Tensor, "frames tokens dim"], centre: Float[Tensor, "frames 1 dim"]
) -> Float[Tensor, "frames tokens"]:
    """Five Gaussians of the distance to the centre, summed; in (0, 5]."""
    distance = (unit - centre).square().sum(dim=-1, keepdim=True)
    return torch.exp(-distance / (2 * distance.new_tensor(BANDWIDTHS))).sum(dim=-1)


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("stc.token-score", StreamNovelty)
