"""Test stages that act in the decoder, in prefill or decode, and the same done with masks in the unpatched model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep, KeepKV, Scores
from vidsieve.framework.records import DecodeStep, LayerTokens, PromptKV
from vidsieve.framework.stage import Stage, tunable
from vidsieve.testing.adapter_kit import (
    OWN_INPUTS,
    STEPS,
    full_positions,
    language_inputs,
    layouts_of,
    unpatched,
    visual_places,
)

AFTER = 1


class TopKV(Stage):
    """Read the visual entries with the highest attention, summed over all steps so far."""

    ratio: float = 0.4
    after: int = AFTER
    parked: bool = False

    def parks(self) -> bool:
        """Whether what is not read waits on the host."""
        return self.parked

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """One prune point."""
        return (self.after,)

    @hookimpl
    def prune_kv(self, step: DecodeStep) -> KeepKV:
        """A fixed width for every row; −1 where a row has fewer."""
        rank = step.attention.mean(dim=1) + (step.state["sum"] if step.state else 0)
        counts = [int(count * self.ratio) for count in step.counts]
        order = rank.masked_fill(~step.valid, -1).argsort(dim=1, descending=True)[:, : max(counts)]
        rows = torch.arange(order.shape[1]) < torch.tensor(counts)[:, None]
        active = torch.ones(len(counts), dtype=torch.bool)
        return KeepKV(torch.where(rows, order, -1), active, state={"sum": rank})


class KeepKeys(Stage):
    """Let entries go whose keys are long, in every layer but the first."""

    ratio: float = 0.4
    first: int = 1

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """All behind the first."""
        return tuple(range(self.first, num_layers))

    def leaves(self, offered: int, num_layers: int) -> tuple[int, ...]:
        """The same share in each."""
        return (int(offered * self.ratio),) * len(self.layers(num_layers))

    @hookimpl
    def evict_kv(self, entries: PromptKV) -> Scores:
        """Short keys first."""
        return Scores(-entries.entries("keys").norm(dim=-1).mean(dim=1))


class Misbehaves(TopKV):
    """Do one thing wrong, or nothing at all, in a decode step."""

    how: str = "idle"

    @hookimpl
    def prune_kv(self, step: DecodeStep) -> KeepKV:
        """As `how` says."""
        if self.how == "raise":
            raise ZeroDivisionError("on purpose")
        number = step.attention.shape[2] if self.how == "too high" else 0
        index = torch.full((len(step.counts), 1), number)
        # idle rows are those with the fewest visual tokens; alone, every row is
        active = torch.tensor([count > min(step.counts) for count in step.counts])
        return KeepKV(index, active if self.how == "idle" else ~active | True)


class Force:
    """A logits processor that makes `generate` write given ids."""

    def __init__(self, ids: Tensor, prompt: int) -> None:
        self.ids, self.step = ids, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        only = torch.full_like(scores, -torch.inf)
        only[:, self.ids[self.step]] = 0.0
        self.step += 1
        return only


@torch.no_grad()
def masked_decode(
    model: Any, inputs: dict[str, Any], ratio: float = 0.0, only: int | None = None
) -> Float[Tensor, "steps vocabulary"]:
    """Greedy decoding of one prompt with the whole cache, later layers' masks hiding what `TopKV` would not read.

    With `only`, a single visual entry is read instead. Attention weights come from the model's own eager path.
    """
    given, visual = model.config._attn_implementation, visual_places(model, inputs)
    start = unpatched(model, inputs, max_new_tokens=1)
    cache, total, found = start.past_key_values, torch.zeros(int(visual.sum())), [start.logits[0]]
    positions = _next_positions(model, inputs)
    try:
        model.set_attn_implementation("eager")
        for step in range(STEPS - 1):
            token, length = found[-1].argmax(-1, keepdim=True), cache.get_seq_length()
            options = {"input_ids": token, "position_ids": positions + step, "past_key_values": cache}
            weights = model(**options, output_attentions=True).attentions[AFTER][0, :, 0, :]
            cache.crop(-1)
            total += weights[:, : len(visual)][:, visual].mean(dim=0)
            chosen = total.argsort(descending=True)[: int(len(total) * ratio)]
            chosen = chosen if only is None else torch.tensor([only])
            hidden = visual.clone()
            hidden[visual.nonzero().squeeze(1)[chosen]] = False
            mask = torch.zeros(1, 1, 1, length + 1)
            mask[..., : len(hidden)].masked_fill_(hidden, torch.finfo(mask.dtype).min)
            with _masks_after(model, mask):
                found.append(model(**options).logits[:, -1])
    finally:
        model.set_attn_implementation(given)
    return torch.cat(found).float()


def _next_positions(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Position of the first generated token, on every axis."""
    return full_positions(model, inputs)[..., -1:] + 1


@contextmanager
def _masks_after(model: Any, mask: Tensor) -> Iterator[None]:
    """While open, layers behind the prune point are given this additive mask."""

    def swap(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"attention_mask": mask}

    layers = model.get_decoder().layers[AFTER + 1 :]
    handles = [layer.register_forward_pre_hook(swap, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class TopLayer(Stage):
    """Keep the visual tokens that the last one of the prompt attends to most."""

    solves = "keep_ratio"
    keep_ratio: float | None = tunable(None, low=0.0, high=1.0)
    after: tuple[int, ...] = (1,)
    of: str = "previous"

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """As many prune points as `after` names."""
        return self.after

    def leaves(self, offered: int, num_layers: int) -> tuple[int, ...]:
        """A share of a share of a share."""
        assert self.keep_ratio is not None
        return tuple(int(offered * self.keep_ratio ** (turn + 1)) for turn in range(len(self.after)))

    @hookimpl
    def prune_layer(self, tokens: LayerTokens) -> Scores | Keep:
        """The mean over heads."""
        for kind, states in (("visual", tokens.hidden), ("text", tokens.text)):
            assert tokens.keys(kind).shape[1] == len(states)
            assert tokens.final_norm(states).dtype == torch.float32
        return Scores(tokens.attention("last", of=self.of).mean(dim=(0, 1)))


class KeepLayer(TopLayer):
    """Say explicitly that nothing goes, after having looked at everything."""

    @hookimpl
    def prune_layer(self, tokens: LayerTokens) -> Keep:
        """What came."""
        tokens.attention(torch.arange(len(tokens.text)), of=self.of)
        return Keep(torch.ones_like(tokens.frame, dtype=torch.bool))


class BreaksInside(TopLayer):
    """Raise in the middle of a pass."""

    @hookimpl
    def prune_layer(self, tokens: LayerTokens) -> Scores:
        """Never returns."""
        raise ZeroDivisionError("on purpose")


class Point(NamedTuple):
    """Tokens left of each video after a layer, ranked by that layer's attention or the next one's."""

    after: int
    of: str
    counts: tuple[int, ...]


def video_columns(model: Any, inputs: dict[str, Any]) -> list[Tensor]:
    """Prompt columns of the visual tokens of each video, structural ones left out."""
    videos = [layout for layout in layouts_of(model, inputs) if layout.visual]
    counts = [layout.visual if layout.alive is None else int(layout.alive.sum()) for layout in videos]
    return list(visual_places(model, inputs).nonzero().squeeze(1).split(counts))


def ranked(
    model: Any,
    inputs: dict[str, Any],
    points: Sequence[Point],
    *,
    compact: bool = False,
    gone: Bool[Tensor, "layers columns"] | None = None,
    videos: Sequence[Tensor] | None = None,
) -> Bool[Tensor, "layers columns"]:
    """Which columns of one prompt are gone in each layer, ranked by the weights of the model's own eager path."""
    depth, width = model.config.get_text_config().num_hidden_layers, inputs["input_ids"].shape[1]
    gone = torch.zeros(depth, width, dtype=torch.bool) if gone is None else gone.clone()
    for point in points:
        _, output = masked(model, inputs, inputs["input_ids"], gone, compact=compact, eager=True)
        row = output.attentions[point.after + (point.of == "next")][0, :, -1].mean(dim=0)
        for columns, count in zip(videos or video_columns(model, inputs), point.counts, strict=True):
            alive = columns[~gone[point.after, columns]]
            order = alive[row[alive].argsort(descending=True, stable=True)]
            gone[point.after + 1 :, order[count:]] = True
    return gone


@torch.no_grad()
def masked(
    model: Any,
    inputs: dict[str, Any],
    ids: Tensor,
    gone: Bool[Tensor, "layers prompt"],
    *,
    compact: bool = False,
    eager: bool = False,
    melted: Mapping[int, tuple[Tensor, Tensor]] | None = None,
    unread: Bool[Tensor, "layers all all2"] | None = None,
) -> tuple[Float[Tensor, "all vocabulary"], Any]:
    """Logits of `ids` (the prompt and text after it) in one full-length pass of the unmodified decoder.

    In each layer nothing attends to the columns that are `gone` there; with `compact` what is left is renumbered.
    `melted` holds, by layer, columns and the hidden states that they have from there on; `unread` hides single columns
    from single tokens too.
    """
    lm, prompt = model.get_decoder(), inputs["input_ids"].shape[1]
    later_embeds = model.get_input_embeddings()(ids[:, prompt:])
    given = language_inputs(model, inputs)
    embeds = torch.cat([given.pop("inputs_embeds"), later_embeds], dim=1)
    more = {name: _longer(value, prompt, ids.shape[1]) for name, value in given.items() if name not in OWN_INPUTS}
    positions = full_positions(model, inputs)
    later = positions[..., -1:] + torch.arange(1, ids.shape[1] - prompt + 1)
    positions = torch.cat([positions, later], dim=-1)
    longer = torch.zeros(len(gone), ids.shape[1], dtype=torch.bool)
    longer[:, : gone.shape[1]] = gone
    attention = lm.config._attn_implementation
    try:
        if eager:
            model.set_attn_implementation("eager")
        with hidden_columns(lm, longer, positions, compact, melted or {}, unread):
            wanted = {"output_attentions": eager, "output_hidden_states": eager, "use_cache": False}
            output = lm(inputs_embeds=embeds, position_ids=positions, **more, **wanted)
    finally:
        if eager:
            model.set_attn_implementation(attention)
    return model.lm_head(output.last_hidden_state)[0].float(), output


def _longer(value: Any, prompt: int, width: int) -> Any:
    """An input with one entry a token of the prompt, for text behind it too: 0 or False says text."""
    if isinstance(value, Tensor) and value.dim() == 2 and value.shape[1] == prompt:
        return torch.nn.functional.pad(value, (0, width - prompt))
    return value


@contextmanager
def hidden_columns(
    lm: Any,
    gone: Bool[Tensor, "layers columns"],
    positions: Tensor,
    compact: bool,
    melted: Mapping[int, tuple[Tensor, Tensor]],
    unread: Bool[Tensor, "layers columns columns2"] | None = None,
) -> Iterator[None]:
    """While open, each layer has a causal mask of its own, and positions of its own if they are compact."""
    width = gone.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool).tril()

    def swap(number: int) -> Any:
        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            seen = causal & ~gone[number] if unread is None else causal & ~gone[number] & ~unread[number]
            mask = torch.zeros(1, 1, width, width).masked_fill(~seen, torch.finfo(torch.float32).min)
            kwargs = kwargs | {"attention_mask": mask}
            if compact and gone[number].any():
                count = ((~gone[number]).long().cumsum(0) - 1).clamp(min=0)
                kwargs["position_embeddings"] = lm.rotary_emb(args[0], count.expand(positions.shape))
            if number in melted:
                columns, states = melted[number]
                args = (args[0].index_copy(1, columns, states[None]), *args[1:])
            return args, kwargs

        return hook

    handles = [layer.register_forward_pre_hook(swap(i), with_kwargs=True) for i, layer in enumerate(lm.layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
