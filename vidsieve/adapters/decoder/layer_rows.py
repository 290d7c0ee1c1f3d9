"""The prompts of a batch in prefill: which token is where, as prune points remove more and more of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidsieve.adapters.prompt.columns import Columns
from vidsieve.framework.planning.attainable import LayerCounts
from vidsieve.framework.planning.layer_cut import LayerCut
from vidsieve.framework.planning.pipeline import TokenPlan
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.trace import LayerTrace


@dataclass(eq=False, kw_only=True)
class PrefillVideo:
    """One video: `slots` of its tokens among the row's, their numbers in the video, and how many each stands for.

    `memo` is what stages worked out of what entered the first layer, `trail` what each prune point left.
    """

    plan: TokenPlan
    index: int
    counts: LayerCounts
    slots: Int[Tensor, " visual"]
    tokens: Int[Tensor, " visual"]
    weight: Float[Tensor, " visual"]
    entered: Int[Tensor, " entered"]
    memo: dict[Any, Any] = field(default_factory=dict)
    trail: list[LayerTrace] = field(default_factory=list)

    @property
    def frame(self) -> Int[Tensor, " visual"]:
        """The frame of each token."""
        return self.tokens // self.plan.keep.shape[1]

    @property
    def place(self) -> Int[Tensor, " visual"]:
        """The place of each token in its frame."""
        return self.tokens % self.plan.keep.shape[1]

    def leave_trace(self, layer: int, cut: LayerCut, index: Int[Tensor, " kept"]) -> None:
        """Note what a cut behind `layer` leaves of the tokens there are."""
        source = target = None
        if cut.merge is not None:
            source, target = (self.tokens[part.to(index.device)] for part in (cut.merge.source, cut.merge.target))
        self.trail.append(LayerTrace(layer, self.tokens[index], source, target))


@dataclass(eq=False)
class PrefillRow:
    """The real tokens of one prompt in this pass, by slot: padding has none.

    `places` are columns of the pass whose position a token has, `columns` those whose place in the order it has;
    they differ where merged tokens moved. `others` are the slots no stage touches, `text` counts among them the text
    after the last visual token. `seen` are places in the attention that was tapped last.
    """

    places: Int[Tensor, " slots"]
    others: Int[Tensor, " others"]
    text: Int[Tensor, " words"]
    videos: list[PrefillVideo]

    def __post_init__(self) -> None:
        self.columns = self.places
        self.text_places = self.places[self.others[self.text]]
        self.seen = self.places

    @property
    def width(self) -> int:
        """Real tokens left."""
        return self.places.numel()

    def query_slots(self, rows: Any) -> Int[Tensor, " some"]:
        """The slots of query rows: indices into the text, or "last" for the prompt's last token."""
        if not isinstance(rows, Tensor):
            return torch.arange(self.width - 1, self.width, device=self.places.device)
        return self.others[self.text[rows.to(self.text.device)]]

    def cut(self, layer: int, cuts: Sequence[LayerCut]) -> Int[Tensor, " slots"]:
        """Let go of what the cuts (one a video) behind `layer` drop. Returns the slots that stay, in new order."""
        stride = self.width + 1
        slots, keys = [self.others], [self.others * stride]
        indices = [cut.index.to(self.places.device) for cut in cuts]
        for video, cut, index in zip(self.videos, cuts, indices, strict=True):
            kept = video.slots[index]
            key = kept * stride
            if cut.moved:
                # behind the video's last token and before whatever follows it
                behind = torch.arange(1, cut.moved + 1, device=kept.device)
                key = torch.cat([key[: -cut.moved], video.slots[-1] * stride + behind])
            slots.append(kept)
            keys.append(key)
        every, key = torch.cat(slots), torch.cat(keys)
        pick = every[key.argsort()]
        new = torch.zeros_like(self.places).scatter(0, pick, torch.arange(pick.numel(), device=pick.device))
        self.others = new[self.others]
        for video, kept, cut, index in zip(self.videos, slots[1:], cuts, indices, strict=True):
            video.leave_trace(layer, cut, index)
            video.slots, video.tokens, video.weight = new[kept], video.tokens[index], cut.weight
            video.counts.leave(kept.numel())
        self.places, self.seen = self.places[pick], self.seen[pick]
        self.columns = self.columns[pick].sort().values
        return pick


def right_aligned(
    parts: Sequence[Int[Tensor, " _"]],
) -> tuple[Int[Tensor, "rows width"], Bool[Tensor, "rows width"]]:
    """Rows of different lengths as one tensor, filled up on the left with zeros, and which entries are real."""
    if len(parts) == 1:
        return parts[0][None], torch.ones_like(parts[0][None], dtype=torch.bool)
    width = max(part.numel() for part in parts)
    filled = [torch.nn.functional.pad(part, (width - part.numel(), 0)) for part in parts]
    lengths = torch.tensor([part.numel() for part in parts]).to(parts[0].device)
    place = torch.arange(width, device=parts[0].device)
    return torch.stack(filled), place >= width - lengths[:, None]


def rows_of_prompt(
    columns: Columns,
    start: int,
    plans: Sequence[Sequence[TokenPlan]],
    placeholders: Bool[Tensor, "rows columns"],
    policy: Policy,
    layers: int,
) -> list[PrefillRow]:
    """The prompts behind column `start`, with their videos. Reads the places of visual tokens back, once a row."""
    rows = []
    for number, videos in enumerate(plans):
        places = columns.mask[number, start:].bool().nonzero().squeeze(1)
        visual = columns.visual[number, start:][places]
        slots, others = visual.nonzero().squeeze(1), (~visual).nonzero().squeeze(1)
        behind = others > (slots[-1] if slots.numel() else -1)
        text = (behind & ~placeholders[number, start:][places[others]]).nonzero().squeeze(1)
        parts = slots.split([plan.index.numel() for plan in videos])
        found = [
            PrefillVideo(
                plan=plan,
                index=index,
                counts=LayerCounts(policy, baseline=plan.report.baseline_tokens, offered=part.numel(), layers=layers),
                slots=part,
                tokens=plan.index.to(part.device),
                weight=plan.weight,
                entered=places[part],
            )
            for index, (plan, part) in enumerate(zip(videos, parts, strict=True))
        ]
        rows.append(PrefillRow(places, others, text, found))
    return rows
