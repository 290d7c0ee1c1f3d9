"""The pass over the prompt: at each prune point stages are asked, and later layers are given a shorter sequence."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.func import functional_call

from vidsieve.adapters.attention_taps import AttentionCall, Tapped, ones_rotated, queries_and_keys, scaling_of
from vidsieve.adapters.decoder.layer_rows import PrefillRow, PrefillVideo, right_aligned
from vidsieve.adapters.prompt.columns import CachedColumns, gathered
from vidsieve.adapters.transformers_internals import attention_name, cached_keys, rotary_of, unread_configuration
from vidsieve.framework.errors import PlanError
from vidsieve.framework.planning.attainable import PrunePoint, prune_points
from vidsieve.framework.planning.checks import call as call_stage
from vidsieve.framework.planning.layer_cut import LayerCut, cut_of
from vidsieve.framework.planning.pipeline import generator
from vidsieve.framework.plans import Keep
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import ShownTokens
from vidsieve.framework.report import Stopwatch


class Prefill:
    """One pass over a prompt of `width` columns, `start` of them cached before.

    `rows` are its prompts, `mask` their real columns, `past` what each layer's cache holds where it is not
    everything. `held` becomes the same with this prompt.
    """

    def __init__(
        self,
        decoder: Any,
        policy: Policy,
        *,
        rows: Sequence[PrefillRow],
        mask: Bool[Tensor, "prompts width"],
        start: int = 0,
        past: Sequence[CachedColumns | None] | None = None,
        mrope: bool = False,
        seed: int = 0,
    ) -> None:
        self.decoder, self.policy, self.rows, self.mask, self.start = decoder, policy, rows, mask, start
        self.mrope, self.seed = mrope, seed
        self.layers = len(decoder.layers)
        self.past = list(past) if past is not None else [None] * self.layers
        self.held: list[CachedColumns | None] = list(self.past)
        self.points = prune_points(policy, self.layers) if any(row.videos for row in rows) else ()
        self.whole = bool(mask.all())
        self.width: int | None = None  # of the shortened sequence; None before the first cut
        self.watches: list[Stopwatch] = []
        self._last: Tapped | None = None
        self.rotation: Any = None  # cosines and sines that the layer run last was given
        self._made: dict[Any, tuple[CachedColumns, Any, Any]] = {}
        self._rngs: dict[Any, torch.Generator] = {}

    # ---------------------------------------------------------------- what the hooks call

    def enter(
        self, layer: int, hidden: Float[Tensor, "rows new dim"], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, Mapping[str, Any]]:
        """Before a layer: prune if a point lies before it, then give it the arguments that fit."""
        self.times = hidden.shape[0] // len(self.rows)
        if layer == 0:
            self.inputs = hidden
        for point in self.points:
            if point.layer == layer - 1:
                with torch.no_grad(), Stopwatch(hidden.device) as watch:
                    hidden = self._prune(point, hidden, kwargs)
                self.watches.append(watch)
        self._last = None
        if any(point.layer == layer for point in self.points):
            self.before = hidden
            for row in self.rows:
                row.seen = self.columns_of(row)
        if layer == self.layers - 1:
            self._finish()
        self.rotation = kwargs.get("position_embeddings")
        if self.width is None and self.past[layer] is None:
            return hidden, kwargs
        held, mask, embeddings = self._arguments(layer, hidden, kwargs)
        self.rotation = embeddings
        self.held[layer] = held
        changed = {"attention_mask": mask, "position_embeddings": embeddings, "position_ids": None}
        return hidden, {**kwargs, **self._per_token(kwargs), **changed}

    def shortened(self, values: Shaped[Tensor, "*axes new dim"]) -> Shaped[Tensor, "*axes2 left dim"]:
        """What belongs to the tokens of the pass, cut to those in the sequence as it is now."""
        if self.width is None:
            return values
        places, _ = right_aligned([row.places for row in self.rows])
        return gathered(values, places.repeat_interleave(self.times, dim=0))

    def attended(self, call: AttentionCall) -> None:
        """The attention of a layer that a prune point follows has its queries and keys ready."""
        self._last = self.tapped(call, call.layer, call.key)

    def _finish(self) -> None:
        for row in self.rows:
            for video in row.videos:
                video.counts.enter(self.layers - 1)

    # ---------------------------------------------------------------- asking

    def _prune(self, point: PrunePoint, hidden: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """Ask the stage for every video of every prompt, then shorten all prompts at once."""
        ahead: dict[str, Tapped] = {}
        every = []
        for number, row in enumerate(self.rows):
            every.append([self._ask(point, number, video, hidden, kwargs, ahead) for video in row.videos])
        videos = [video for row in self.rows for video in row.videos]
        flat = [cut for cuts in every for cut in cuts]
        unchanged = all(cut.index.numel() == one.slots.numel() for cut, one in zip(flat, videos, strict=True))
        if unchanged and not any(cut.moved for cut in flat):
            return hidden
        hidden = self._melted(hidden, every)
        before = [self.columns_of(row) for row in self.rows]
        picked = [
            places[row.cut(point.layer, cuts)] for places, row, cuts in zip(before, self.rows, every, strict=True)
        ]
        index, self.real = right_aligned(picked)
        self.width = index.shape[1]
        self._made.clear()
        return gathered(hidden, index.repeat_interleave(self.times, dim=0))

    def _ask(
        self,
        point: PrunePoint,
        number: int,
        video: PrefillVideo,
        hidden: Tensor,
        kwargs: Mapping[str, Any],
        ahead: dict[str, Tapped],
    ) -> LayerCut:
        """One stage's answer for one video, checked."""
        row, bound = self.rows[number], self.policy.stages[point.position]
        offered = video.counts.offered(point)
        stage, count = video.counts.ask(point)
        first, columns, device = number * self.times, self.columns_of(row), hidden.device
        tokens = ShownTokens(
            {
                "hidden": lambda: _at(hidden, first, columns[video.slots]),
                "hidden_before": lambda: _at(self.before, first, row.seen[video.slots]).to(device),
                "text": lambda: _at(hidden, first, columns[row.others[row.text]]),
                "visual_inputs": lambda: _at(self.inputs, first, video.entered).to(device),
                "text_inputs": lambda: _at(self.inputs, first, row.text_places).to(device),
                "frame": lambda: video.frame.to(device),
                "token": lambda: video.place.to(device),
            },
            weight=video.weight.to(device),
            layer=point.layer,
            layers=self.layers,
            attention=partial(self._attention, point, number, video, hidden, kwargs, ahead),
            rotary=partial(self._rotary, number, video, device),
            keys=partial(self._keys, number, video, device),
            final_norm=self._final_norm,
            rng=self._rng(number, video, point),
            turn=point.turn,
            offered=offered,
            count=count,
            afford=video.counts.afford,
            token_grid=video.plan.token_grid,
            budget=video.plan.budget,
            scores=video.plan.scores,
            segments=video.plan.segments,
            memo=video.memo,
        )
        where = f"policy {self.policy.name!r}, stage {bound.label!r}, prune_layer"
        plan = call_stage(where, stage, "prune_layer", tokens)
        cut = cut_of(where, plan, tokens)
        if isinstance(plan, Keep) and self.policy.exact and count is not None and cut.index.numel() != count:
            raise PlanError(
                f"{where}: kept {cut.index.numel()} visual tokens where tokens.count asks for {count}. Return Scores, "
                "or set `exact: false` in the policy."
            )
        return cut

    def _rng(self, number: int, video: PrefillVideo, point: PrunePoint) -> torch.Generator:
        key = (number, video.index, point.position)
        if key not in self._rngs:
            self._rngs[key] = generator(self.seed, video.index, point.position)
        return self._rngs[key]

    def _attention(
        self,
        point: PrunePoint,
        number: int,
        video: PrefillVideo,
        hidden: Tensor,
        kwargs: Mapping[str, Any],
        ahead: dict[str, Tapped],
        rows: Any = "last",
        of: str = "previous",
    ) -> Float[Tensor, "heads asked visual"]:
        """`LayerTokens.attention`."""
        row = self.rows[number]
        if of == "previous":
            tap, places = self.tap, row.seen
        else:
            if "next" not in ahead:
                ahead["next"] = self._ahead(point.layer + 1, hidden, kwargs)
            tap, places = ahead["next"], self.columns_of(row)
        asked = places[row.query_slots(rows)]
        return tap.rows(number * self.times, number, asked, places[video.slots]).to(hidden.device)

    @property
    def tap(self) -> Tapped:
        """Queries and keys of the layer that the point follows."""
        if self._last is None:
            raise unread_configuration(self.decoder.layers[0].self_attn)
        return self._last

    def _rotary(
        self, number: int, video: PrefillVideo, device: torch.device, rows: Any = "last"
    ) -> Float[Tensor, "asked visual"]:
        """`LayerTokens.rotary`."""
        row, first = self.rows[number], number * self.times
        asked, visual = row.seen[row.query_slots(rows)], row.seen[video.slots]
        return ones_rotated(self.decoder, self.rotation, first, asked, visual, self.tap.query.shape[-1]).to(device)

    def _keys(
        self, number: int, video: PrefillVideo, device: torch.device, of: str
    ) -> Float[Tensor, "heads asked dim"]:
        """`LayerTokens.keys`."""
        row = self.rows[number]
        slots = video.slots if of == "visual" else row.others[row.text]
        return self.tap.keys(number * self.times, row.seen[slots]).to(device)

    def _final_norm(self, states: Float[Tensor, "asked dim"]) -> Float[Tensor, "asked dim"]:
        """`LayerTokens.final_norm`."""
        norm = self.decoder.norm
        # a layer norm refuses float32 states beside half weights
        weights = {name: value.to(states.device).float() for name, value in norm.state_dict().items()}
        return functional_call(norm, weights, (states.float(),))

    # ---------------------------------------------------------------- where things are

    def columns_of(self, row: PrefillRow) -> Int[Tensor, " slots"]:
        """The column of each of a row's tokens in the sequence as it is now."""
        if self.width is None:
            return row.places
        return torch.arange(row.width, device=row.places.device) + (self.width - row.width)

    def _asking(self) -> Int[Tensor, "rows asking"]:
        """The columns that stages may ask the attention of: the text behind the video, and the last one."""
        found = [
            torch.cat([columns[row.others[row.text]], columns[-1:]])
            for row, columns in ((row, self.columns_of(row)) for row in self.rows)
        ]
        return right_aligned(found)[0].repeat_interleave(self.times, dim=0)

    def _real(self) -> Bool[Tensor, "prompts new"]:
        return self.mask[:, self.start :] if self.width is None else self.real

    def tapped(self, call: AttentionCall, layer: int, key: Tensor) -> Tapped:
        """Queries of a call and the keys of a layer, with what is real among them."""
        past = self.past[layer]
        return Tapped(
            query=call.query,
            key=key,
            scaling=scaling_of(call),
            real=self._real(),
            past=self.mask[:, : self.start] if past is None else past.real,
        )

    def _ahead(self, layer: int, hidden: Tensor, kwargs: Mapping[str, Any]) -> Tapped:
        """The coming layer's queries and keys on the sequence as it is, at the positions it has now."""
        embeddings = kwargs["position_embeddings"]
        if self.width is not None or self.past[layer] is not None:
            embeddings = self._arguments(layer, hidden, kwargs)[2]
        call = queries_and_keys(self.decoder.layers[layer], layer, hidden, embeddings, self._asking())
        key = call.key
        if self.start:
            key = torch.cat([cached_keys(kwargs["past_key_values"], layer), key], dim=2)
        return self.tapped(call, layer, key)

    # ---------------------------------------------------------------- shortening

    def _melted(self, hidden: Tensor, every: Sequence[Sequence[LayerCut]]) -> Tensor:
        """Hidden states with the targets of merges replaced by their means."""
        merges = [
            (n, video, cut)
            for n, cuts in enumerate(every)
            for video, cut in zip(self.rows[n].videos, cuts, strict=True)
        ]
        if any(cut.merge is not None for _, _, cut in merges):
            hidden = hidden.clone()
        for number, video, cut in merges:
            if cut.merge is None:
                continue
            places = self.columns_of(self.rows[number])[video.slots].to(hidden.device)
            for beam in range(number * self.times, (number + 1) * self.times):
                hidden[beam, places] = cut.merge.apply(hidden[beam, places])
        return hidden

    def _arguments(self, layer: int, hidden: Tensor, kwargs: Mapping[str, Any]) -> tuple[CachedColumns, Any, Any]:
        """What a layer holds from now on, its mask and its rotary embeddings; made once for layers that agree."""
        past = self.past[layer]
        if id(past) not in self._made:
            new = self._new(hidden.device)
            held = new if not self.start else new.behind(self._whole_past(new) if past is None else past)
            wide, queries = held.for_rows(hidden.shape[0]), hidden.shape[1]
            implementation = attention_name(self.decoder.config)
            mask = wide.mask(kwargs["attention_mask"], queries, implementation, hidden.dtype)
            self._made[id(past)] = held, mask, self._embeddings(wide, hidden, kwargs["position_embeddings"])
        held, mask, embeddings = self._made[id(past)]
        mask = mask.to(hidden.device) if isinstance(mask, Tensor) else mask
        return held, mask, tuple(part.to(hidden.device) for part in embeddings)

    def _new(self, device: torch.device) -> CachedColumns:
        """This prompt's columns in the sequence as it is now."""
        renumbered = self.policy.positions == "compact"
        if self.width is None:
            real = self.mask[:, self.start :]
            columns = torch.arange(self.start, self.mask.shape[1], device=real.device).expand(len(real), -1)
            return CachedColumns(
                columns=columns, places=columns, real=real, filled=not self.whole, renumbered=renumbered
            )
        columns, real = right_aligned([row.columns for row in self.rows])
        places, _ = right_aligned([row.places for row in self.rows])
        return CachedColumns(
            columns=columns + self.start,
            places=places + self.start,
            real=real,
            filled=len({row.width for row in self.rows}) > 1,
            renumbered=renumbered,
        )

    def _whole_past(self, new: CachedColumns) -> CachedColumns:
        real = self.mask[:, : self.start]
        columns = torch.arange(self.start, device=real.device).expand(len(real), -1)
        return CachedColumns(
            columns=columns, places=columns, real=real, filled=not self.whole, renumbered=new.renumbered
        )

    def _embeddings(self, held: CachedColumns, hidden: Tensor, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Rotary embeddings of the sequence as it is now: of the original positions, or of new ones."""
        if held.renumbered:
            return renumbered(self.decoder, held.positions(hidden.shape[1]), hidden, self.mrope)
        return tuple(self.shortened(part) for part in given)

    def _per_token(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Other arguments of a layer with one entry a token (the modality of mixture-of-experts models, say)."""
        if self.width is None:
            return {}
        shape = (len(self.rows) * self.times, self.mask.shape[1] - self.start)
        found = {name: value for name, value in kwargs.items() if isinstance(value, Tensor) and value.dim() == 2}
        return {n: self.shortened(v[..., None])[..., 0] for n, v in found.items() if tuple(v.shape) == shape}


def _at(values: Float[Tensor, "rows columns dim"], row: int, places: Int[Tensor, " some"]) -> Tensor:
    """Entries of one row, on the device of the values."""
    return values[row].index_select(0, places.to(values.device))


def renumbered(decoder: Any, positions: Int[Tensor, "rows new"], hidden: Tensor, mrope: bool) -> tuple[Tensor, ...]:
    """Rotary embeddings of positions counted over what a layer holds; the same on all axes of M-RoPE."""
    positions = positions.to(hidden.device)
    # past the hooks, which would turn them into those of the uncompressed prompt
    return tuple(rotary_of(decoder).forward(hidden, positions.expand(3, *positions.shape) if mrope else positions))
