"""What single visual tokens show, asked of the decoder's middle layers in training: heads that are thrown away after.

The lines of text ask a clip a score of things; its tokens can be asked thousands. Role and moment are asked early,
what takes a comparison over time half-way, so that the later layers have something to read.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, rms_norm

from vidsieve.bundled.shapes import ModelShape
from vidsieve.bundled.train.clips import DISC, FLASH, NOTHING, LongBatch
from vidsieve.bundled.train.configs import WIDTH
from vidsieve.bundled.words import DIRECTIONS

ROLES, RANKS = 4, 4
NOTHING_WEIGHT = 0.1
MOMENT_EVERY = 16


class Marks(torch.nn.Module):
    """Linear heads on normalised hidden states of visual tokens."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.early, self.late = shape.layers // 3 - 1, 2 * shape.layers // 3 - 1
        self.role = torch.nn.Linear(WIDTH, ROLES)
        self.moment = torch.nn.Linear(WIDTH, shape.groups)
        self.rank = torch.nn.Linear(WIDTH, RANKS)
        self.direction = torch.nn.Linear(WIDTH, len(DIRECTIONS))

    def losses(self, hidden: dict[int, Float[Tensor, "batch kept dim"]], batch: LongBatch) -> dict[str, Tensor]:
        """Cross-entropies by head, from the hidden states after the layers `early` and `late`."""
        early, late = (rms_norm(hidden[layer], (WIDTH,)) for layer in (self.early, self.late))
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
        return losses
