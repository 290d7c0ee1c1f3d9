"""Help for the decoder's middle layers in training: what single visual tokens show, and where to look for an answer.

The lines of text ask a clip a score of things; its tokens can be asked thousands. Role and moment are asked early,
what takes a comparison over time half-way, so that the later layers have something to read. The heads are thrown away.

In the first stages two attention heads are also shown the tokens that an answer can be read from: without that, binding
a colour to its thing takes many times the steps. Later stages are free of it, so that where a trained model looks is
its own doing: methods that prune by attention are not handed the truth.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, rms_norm

from vidsieve.bundled.shapes import ModelShape
from vidsieve.bundled.train.clips import DISC, FLASH, NOTHING, LongBatch
from vidsieve.bundled.train.configs import WIDTH
from vidsieve.bundled.train.packed import Probe
from vidsieve.bundled.words import DIRECTIONS

ROLES, RANKS = 4, 4
NOTHING_WEIGHT = 0.1
MOMENT_EVERY = 16
GUIDED_HEADS = 2
TIMED = ("first_color", "last_color", "order", "first_direction", "last_direction")


class Marks(torch.nn.Module):
    """Linear heads on normalised hidden states of visual tokens."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.early, self.middle, self.late = shape.layers // 3 - 1, shape.layers // 2 - 1, 2 * shape.layers // 3 - 1
        self.role = torch.nn.Linear(WIDTH, ROLES)
        self.moment = torch.nn.Linear(WIDTH, shape.groups)
        self.rank = torch.nn.Linear(WIDTH, RANKS)
        self.direction = torch.nn.Linear(WIDTH, len(DIRECTIONS))

    def losses(self, probe: Probe, batch: LongBatch) -> dict[str, Tensor]:
        """Cross-entropies by head, from the hidden states after the layers `early` and `late`."""
        early, late = (rms_norm(probe.hidden[layer], (WIDTH,)) for layer in (self.early, self.late))
        weight = torch.ones(ROLES)
        weight[NOTHING] = NOTHING_WEIGHT
        flash, disc = batch.role == FLASH, batch.role == DISC
        timed = flash | (torch.arange(batch.role.shape[1]) % MOMENT_EVERY == 0)
        rank = (flash.cumsum(1) - 1).clamp(0, RANKS - 1)
        losses = {
            "role": cross_entropy(self.role(early).flatten(0, 1), batch.role.flatten(), weight=weight),
            "moment": cross_entropy(self.moment(early[timed]), batch.group[timed]),
        }
        if flash.any():
            losses["rank"] = cross_entropy(self.rank(late[flash]), rank[flash])
        if disc.any():
            losses["heading"] = cross_entropy(self.direction(late[disc]), batch.direction[disc])
        if batch.guided:
            losses["guide"] = self._guide(probe, batch)
        return losses

    def probe(self, batch: LongBatch) -> Probe:
        """What a pass must give back for `losses`."""
        empty = torch.empty(0)
        wanted = {self.middle: empty, self.late + 1: empty} if batch.guided else {}
        return Probe({self.early: empty, self.late: empty}, wanted, batch.lines.first_asked)

    def _guide(self, probe: Probe, batch: LongBatch) -> Tensor:
        """How little two heads look at what the answer can be read from; questions of time are asked later on.

        Of two things each head is shown one.
        """
        about = batch.lines.about.transpose(1, 2)
        about = torch.where(about == 0, about[:, :1], about)
        evidence = (batch.shown[:, None, None] == about[..., None]) & (about[..., None] > 0)
        can = evidence.any(-1).all(1)
        timed = torch.tensor([name in TIMED for name in batch.lines.names])[batch.lines.kinds]
        losses = []
        for layer, chosen in ((self.middle, can & ~timed), (self.late + 1, can & timed)):
            weight = (probe.attention[layer][:, :GUIDED_HEADS] * evidence).sum(-1)
            losses.append(-(weight + 1e-4).log().mean(1)[chosen])
        return torch.cat(losses).mean()
