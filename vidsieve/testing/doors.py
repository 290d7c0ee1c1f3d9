"""Doors for checks against outside results: recorded attention in, kept indices out."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vidsieve.framework.errors import PlanError
from vidsieve.framework.planning.checks import call
from vidsieve.framework.planning.layer_cut import cut_of
from vidsieve.framework.plans import Budget, KeepKV, Scores, highest
from vidsieve.framework.records import DecodeStep, LayerTokens, PromptKV
from vidsieve.framework.stage import Stage


def select_kv(
    stage: Stage,
    attention_rows: Float[Tensor, "heads keys"],
    visual_span: tuple[int, int],
    state: Mapping[str, Any] | None = None,
    *,
    num_layers: int = 32,
) -> tuple[Int[Tensor, " kept"], dict[str, Any] | None]:
    """What a KV stage lets one decode step of one request attend to.

    Args:
        stage: a stage with `prune_kv`.
        attention_rows: softmaxed attention of the newest token over all keys, one row a query head.
        visual_span: (start, length) of the visual tokens among the keys.
        state: what the previous step returned; None at the first.
        num_layers: depth of the model the stage believes to be in.

    Returns:
        Sorted absolute key indices (everything outside the span is always kept; all keys when the step is left
        alone), and the state for the next step.
    """
    start, length = visual_span
    keys = attention_rows.shape[1]
    step = DecodeStep(
        attention=attention_rows[None, :, start : start + length].float(),
        valid=torch.ones(1, length, dtype=torch.bool, device=attention_rows.device),
        counts=(length,),
        layer=stage.layers(num_layers)[0],
        state=dict(state) if state is not None else None,
    )
    where = f"stage {type(stage).__name__}, prune_kv"
    plan = call(where, stage, "prune_kv", step)
    assert isinstance(plan, KeepKV)
    everything = torch.arange(keys, device=attention_rows.device)
    if not bool(plan.active[0]):
        return everything, plan.state
    if bool((plan.index >= length).any()):
        raise PlanError(f"{where}: KeepKV.index must be below the {length} visual tokens, got {int(plan.index.max())}.")
    chosen = plan.index[0][plan.index[0] >= 0] + start
    outside = everything[(everything < start) | (everything >= start + length)]
    return torch.cat([outside, chosen]).unique(), plan.state


def kept_kv(
    stage: Stage,
    *,
    keys: Float[Tensor, "rows kv_heads visual dim"] | None = None,
    values: Float[Tensor, "rows kv_heads visual dim"] | None = None,
    attention: Float[Tensor, "rows heads asked visual"] | None = None,
    counts: tuple[int, ...] | None = None,
    num_layers: int = 32,
    turn: int = 0,
) -> list[list[int]]:
    """Which visual entries a KV stage keeps for good in a layer's cache, row by row and in ascending order.

    Args:
        stage: a stage with `evict_kv`.
        keys, values: what the cache holds of the visual tokens, as far as the stage reads it.
        attention: softmaxed attention to them of the text behind the video, in order; its last rows are shown.
        counts: visual tokens of each row; all by default.
        num_layers: depth of the model the stage believes to be in.
        turn: which of the layers it names it is asked about.
    """
    given: Any = next(one for one in (keys, values, attention) if one is not None)
    rows, visual = given.shape[0], given.shape[-1 if given is attention else 2]
    counts = counts or (visual,) * rows
    valid = torch.arange(visual, device=given.device) < torch.tensor(counts, device=given.device)[:, None]
    entries = {"keys": keys, "values": values}

    def shown(of: str) -> Tensor:
        found = entries[of]
        assert found is not None, f"the stage reads {of}, which were not given"
        return found.float().masked_fill(~valid[:, None, :, None], 0.0)

    def attended(asked: int) -> Tensor:
        assert attention is not None, "the stage reads attention, which was not given"
        return attention.float()[:, :, -asked:].masked_fill(~valid[:, None, None], 0.0)

    record = PromptKV(
        entries=shown,
        attention=attended,
        valid=valid,
        counts=counts,
        layer=stage.layers(num_layers)[turn],
        layers=num_layers,
    )
    where = f"stage {type(stage).__name__}, evict_kv"
    scores = call(where, stage, "evict_kv", record).values
    left = [min(count, stage.leaves(count, num_layers)[turn]) if count else 0 for count in counts]
    return [row.nonzero().squeeze(1).tolist() for row in highest(scores, valid, left)]


def rank_layer(
    stage: Stage,
    attention_rows: Float[Tensor, "heads rows visual"],
    *,
    count: int | None = None,
    afford: float | None = None,
    keys: tuple[Float[Tensor, "kv_heads visual size"], Float[Tensor, "kv_heads words size"]] | None = None,
    rotary: Float[Tensor, "rows visual"] | None = None,
    final_norm: Callable[[Tensor], Tensor] = torch.Tensor.float,
    hidden: Float[Tensor, "visual dim"] | None = None,
    hidden_before: Float[Tensor, "visual dim"] | None = None,
    text: Float[Tensor, "words dim"] | None = None,
    visual_inputs: Float[Tensor, "entered dim"] | None = None,
    text_inputs: Float[Tensor, "words dim"] | None = None,
    frame: Int[Tensor, " visual"] | None = None,
    token: Int[Tensor, " visual"] | None = None,
    weight: Float[Tensor, " visual"] | None = None,
    token_grid: tuple[int, int, int] | None = None,
    budget: Budget | None = None,
    scores: Scores | None = None,
    layer: int = 2,
    layers: int = 32,
    turn: int = 0,
    offered: int | None = None,
    seed: int = 0,
) -> Int[Tensor, " kept"]:
    """Indices of the visual tokens that a layer stage lets go on (of a Merge its targets), in their new order.

    `attention_rows` answers `LayerTokens.attention`: "last" gives its last row, indices those rows, of any layer.
    `rotary` answers `LayerTokens.rotary` for the same rows; `keys` are those of visual tokens and text. What is left
    out is made of zeros (`rotary` of ones), one frame, and weights of one.
    """
    visual, device, ones = attention_rows.shape[-1], attention_rows.device, torch.ones_like(attention_rows[:1])
    nothing, words = _states(attention_rows, text, text_inputs, hidden, hidden_before, visual_inputs)
    record = LayerTokens(
        hidden=nothing if hidden is None else hidden,
        hidden_before=nothing if hidden_before is None else hidden_before,
        text=words,
        visual_inputs=nothing if visual_inputs is None else visual_inputs,
        text_inputs=words if text_inputs is None else text_inputs,
        frame=torch.zeros(visual, dtype=torch.int64, device=device) if frame is None else frame,
        token=torch.arange(visual, device=device) if token is None else token,
        weight=torch.ones(visual, device=device) if weight is None else weight,
        layer=layer,
        layers=layers,
        turn=turn,
        offered=visual if offered is None else offered,
        attention=partial(_attended, attention_rows),
        keys=partial(_keys, keys or (nothing[None], torch.zeros_like(words)[None])),
        rotary=lambda rows="last": _attended(ones if rotary is None else rotary[None], rows)[0],
        final_norm=final_norm,
        rng=torch.Generator().manual_seed(seed),
        count=count,
        afford=afford,
        token_grid=token_grid,
        budget=budget,
        scores=scores,
    )
    where = f"stage {type(stage).__name__}, prune_layer"
    return cut_of(where, call(where, stage, "prune_layer", record), record).index


def _states(
    attention_rows: Tensor, text: Tensor | None, text_inputs: Tensor | None, *others: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Zeros for hidden states of the visual tokens, as wide as those given, and the text's, zeros if left out."""
    dim = next((states.shape[1] for states in (text, text_inputs, *others) if states is not None), 1)
    words, device = 0 if text_inputs is None else len(text_inputs), attention_rows.device
    text = torch.zeros(words, dim, device=device) if text is None else text
    return torch.zeros(attention_rows.shape[-1], dim, device=device), text


def _attended(recorded: Float[Tensor, "heads rows visual"], rows: Any = "last", of: str = "previous") -> Tensor:
    """`LayerTokens.attention` from recorded rows."""
    return recorded[:, -1:] if isinstance(rows, str) else recorded[:, rows]


def _keys(both: tuple[Tensor, Tensor], of: str) -> Tensor:
    """`LayerTokens.keys` from recorded ones."""
    return both[0] if of == "visual" else both[1]
