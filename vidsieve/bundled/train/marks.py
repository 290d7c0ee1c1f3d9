"""Help for the decoder's middle layers in training: what single visual tokens show, and where to look for an answer.

The lines of text ask a clip a score of things; its tokens can be asked thousands. Role and moment are asked early,
what takes a comparison over time half-way, so that the later layers have something to read. A token's place is asked
early and before the last two layers, which read directions off the places of the disc: rotary positions tell a query
how far away a key is, but no value where it comes from. The heads are thrown away.

Two attention heads of one layer are also shown the tokens that an answer can be read from, and no head of another layer
is to look there: each kind of question is read in a layer of its own. Without the first, binding a colour to its thing
takes many times the steps; without the second, two or three layers read everything and the others stay idle. A third
head of every layer glances there, from the asked word and from an earlier one, too little to read by: real decoders
look at what matters in many layers, and methods that rank tokens by attention live on it. Half-way up a head is shown,
from an event, the events before it: an event's rank takes such a look back.
"""

import torch
from jaxtyping import Bool
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
PLACE_WEIGHT, BARE_PLACE_WEIGHT = 2.0, 0.3
"""Of the squared error of the disc's and all tokens' places, in half pictures."""
GUIDED_HEADS = 2
READ_IN_ORDER = (
    "disc_color",
    "sign_shape",
    "sign_where",
    "exist",
    "shape",
    "where",
    "order",
    "first_color",
    "last_color",
    "first_direction",
    "last_direction",
)
"""Kinds of question by the layer that reads them: what single frames show first, what takes long watching last."""
GLANCING_HEAD, LOOK_BACK_HEAD = 2, 3
LEG_ENDS = {"first_direction": ((0.0, 0.15), (0.2, 0.35)), "last_direction": ((0.65, 0.8), (0.85, 1.0))}
"""The parts of a clip in which each of two heads is shown the disc; it turns between 0.35 and 0.65."""
ROWS, GOLDEN = 16, 0.618
"""Tokens of a clip from which looks back are asked, and a step that spreads them."""
GLANCE_WEIGHT = 3.0
"""Against the loss of the guide, which pulls the other way."""
GLANCE, MOST_GLANCE = 0.12, 0.2
"""Attention to the evidence that the glancing head is to have, and that a head of another layer may have at most."""


class Marks(torch.nn.Module):
    """Linear heads on normalised hidden states of visual tokens."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.layers = shape.layers
        self.early, self.late = shape.layers // 3 - 1, 2 * shape.layers // 3 - 1
        self.middle, self.before_reading = shape.layers // 2 - 1, shape.layers - 3
        self.cells, self.places = shape.cells, shape.places
        self.role = torch.nn.Linear(WIDTH, ROLES)
        self.moment = torch.nn.Linear(WIDTH, shape.groups)
        self.rank = torch.nn.Linear(WIDTH, RANKS)
        self.direction = torch.nn.Linear(WIDTH, len(DIRECTIONS))
        self.place = torch.nn.ModuleList(torch.nn.Linear(WIDTH, 2) for _ in range(2))

    def losses(self, probe: Probe, batch: LongBatch) -> dict[str, Tensor]:
        """Cross-entropies by head, and the squared error of places, from the hidden states after three layers."""
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
        losses["place"] = self._place(probe, batch, disc)
        if batch.guided:
            losses["guide"], losses["glance"] = self._guide(probe, batch)
            losses["back"] = self._back(probe, batch)
        return losses

    def probe(self, batch: LongBatch) -> Probe:
        """What a pass must give back for `losses`."""
        empty = torch.empty(0)
        wanted = dict.fromkeys(range(1, self.layers), empty) if batch.guided else {}
        looking = {self.middle: empty} if batch.guided else {}
        spread = (torch.arange(batch.role.shape[1]) * GOLDEN) % 1 / 2
        order = (batch.role == FLASH) + spread
        rows = order.topk(min(ROWS, order.shape[1]), dim=1).indices
        hidden = dict.fromkeys((self.early, self.late, self.before_reading), empty)
        evidence = _evidence(batch).any(1) if batch.guided else None
        return Probe(hidden, wanted, looking, batch.lines.first_asked, rows, evidence)

    def read_in(self, kind: str) -> int:
        """The layer that reads a kind of question; captions go with the shapes."""
        rank = READ_IN_ORDER.index(kind if kind in READ_IN_ORDER else "shape")
        return 1 + rank * (self.layers - 1) // len(READ_IN_ORDER)

    def _place(self, probe: Probe, batch: LongBatch, disc: Tensor) -> Tensor:
        """How far off the row and the column are that a linear map reads, each from -1 to 1."""
        cell = batch.index % self.places
        place = torch.stack([cell // self.cells, cell % self.cells], dim=-1) * 2 / (self.cells - 1) - 1
        total = torch.zeros(())
        for head, layer in zip(self.place, (self.early, self.before_reading), strict=True):
            error = (head(rms_norm(probe.hidden[layer], (WIDTH,))) - place).square().sum(-1)
            total = total + BARE_PLACE_WEIGHT * error.mean()
            total = total + PLACE_WEIGHT * error[disc].mean() if disc.any() else total
        return total

    def _guide(self, probe: Probe, batch: LongBatch) -> tuple[Tensor, Tensor]:
        """How little a line's own layer looks at what its answer can be read from and how much the others do; glances.

        Of two things, or of the disc in two parts of the clip, each head is shown one. The other layers are not to look
        from any place of the line: what an earlier word has seen, the answer can take from that word.
        """
        evidence = _evidence(batch)
        can = evidence.any(-1).all(1)
        own = torch.tensor([self.read_in(name) for name in batch.lines.names])[batch.lines.kinds]
        here, elsewhere, glances = [], torch.zeros(()), torch.zeros(())
        for layer, attention in probe.attention.items():
            weight = (attention[:, :GUIDED_HEADS] * evidence).sum(-1)
            here.append(-(weight + 1e-4).log().mean(1)[can & (own == layer)])
            looks = (attention * evidence.any(1, keepdim=True)).sum(-1)
            for look in (looks, probe.earlier[layer]):
                beyond = -(1 - (look - MOST_GLANCE).clamp(min=0)).log().sum(1)
                elsewhere = elsewhere + beyond[can & (own != layer)].sum() / can.sum().clamp(min=1)
                # far below any share that counts: a head that looks elsewhere altogether must still have a gradient
                short = -((look[:, GLANCING_HEAD].clamp(max=GLANCE) + 1e-9) / GLANCE).log()[can]
                glances = glances + short.sum() / can.sum().clamp(min=1) / (2 * len(probe.attention))
        return torch.cat(here).mean() + elsewhere, GLANCE_WEIGHT * glances

    def _back(self, probe: Probe, batch: LongBatch) -> Tensor:
        """How little the tokens of events look at those of earlier ones."""
        rows = probe.rows
        role, group = batch.role.gather(1, rows), batch.group.gather(1, rows)
        seen = (batch.role[:, None] == FLASH) & (batch.group[:, None] < group[..., None])
        asked = (role == FLASH) & seen.any(-1)
        share = (probe.looking[self.middle][:, LOOK_BACK_HEAD] * seen).sum(-1)
        return -(share + 1e-4).log()[asked].mean() if asked.any() else torch.zeros(())


def _evidence(batch: LongBatch) -> Bool[Tensor, "batch heads lines video"]:
    """The tokens that each line's answer can be read from, as each of the two heads is shown them."""
    names, kinds = batch.lines.names, batch.lines.kinds
    about = batch.lines.about.transpose(1, 2)
    about = torch.where(about == 0, about[:, :1], about)
    evidence = (batch.shown[:, None, None] == about[..., None]) & (about[..., None] > 0)
    any_disc = (batch.role == DISC)[:, None, None] & (kinds == names.index("disc_color"))[:, None, :, None]
    evidence = evidence | any_disc
    time = batch.group / batch.sort.groups
    for kind, parts in LEG_ENDS.items():
        ends = torch.stack([(batch.role == DISC) & (time >= start) & (time < end) for start, end in parts], dim=1)
        asked = (kinds == names.index(kind))[:, None, :, None]
        evidence = torch.where(asked, ends[:, :, None], evidence)
    return evidence
