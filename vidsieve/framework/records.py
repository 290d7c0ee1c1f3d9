"""What a stage is shown. Everything here is read-only; a stage answers with a plan from `plans`.

Axes: `frames` are the units the vision tower encodes (for Qwen-VL a temporal patch of two source frames), `tokens`
the visual tokens of one frame after projector and merger, `dim` the width of the language model.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidsieve.framework.plans import Budget, Scores, Segments

Result = TypeVar("Result")
Signal = Literal["pixel_difference", "vision_attention", "pre_merger_features"]
SIGNALS: tuple[str, ...] = get_args(Signal)
"""Extra tensors a stage may ask an adapter for, of the tokens that were encoded. The list is closed.

pixel_difference     Float[frames tokens], mean absolute difference of a token's pixels to those of the unit before it,
                     in the model's pixel values; infinite in the first unit
vision_attention     Float[frames tokens], mean attention a token receives in the vision layer that makes the features:
                     from the [CLS] where there is one, else from all patches of its frame
pre_merger_features  Float[frames tokens width], what enters the projector or merger, mean over the token's patches
"""

INPUTS: tuple[str, ...] = ("token_grid", "timestamps_s", "question")
"""Optional fields of `VideoTokens` a stage may need, beside the signals."""


@dataclass(frozen=True)
class VideoShape:
    """The sizes that decide which retention ratios are attainable.

    `frames` and `tokens` (per frame) count what the vision tower makes; `layers` the decoder layers. `alive`, if
    given, is how many tokens of each frame earlier stages left.
    """

    frames: int
    tokens: int
    layers: int = 1
    alive: tuple[int, ...] | None = None

    @cached_property
    def per_frame(self) -> tuple[int, ...]:
        """Tokens offered in each frame."""
        return self.alive if self.alive is not None else (self.tokens,) * self.frames

    @cached_property
    def total(self) -> int:
        """Tokens offered in all."""
        return sum(self.per_frame)


@dataclass(frozen=True, eq=False, kw_only=True)
class FrameBatch:
    """Step 1, before the vision tower: the pixels of one video, a unit per row (a frame or a temporal patch)."""

    pixels: Float[Tensor, "units frames channels height width"]
    timestamps_s: Float[Tensor, " units"] | None = None
    keep_budget: int | None = None
    rng: torch.Generator | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class VideoTokens:
    """Steps 3 to 7: the visual tokens of one video, as projected to the language model's width.

    `keep` marks the tokens still alive; features of dead tokens must not influence a decision. `weight` counts the
    originals a token stands for. `budget`, `scores` and `segments` hold what earlier stages made, or None.
    `token_budget` is the number of tokens to leave, given to the last reducing stage only; `retention_ratio` is what
    the policy was asked for. `token_grid` is (t, h, w) in visual tokens. `frame_index` numbers the original units.
    `question` holds the input embeddings of the text after the last visual token. `rng` lives on the CPU and is
    seeded from the seed, the index of the video in its own request and the position of the stage. `state` is what
    this hook's plan said in `state` for the chunk before, where a video comes in chunks; None for the first. `memo`
    belongs to the core, which begins a new one with every plan and after every reduction; see `once`.
    """

    features: Float[Tensor, "frames tokens dim"]
    keep: Bool[Tensor, "frames tokens"]
    weight: Float[Tensor, "frames tokens"]
    frame_index: Int[Tensor, " frames"]
    rng: torch.Generator
    token_budget: int | None = None
    retention_ratio: float | None = None
    token_grid: tuple[int, int, int] | None = None
    timestamps_s: Float[Tensor, " frames"] | None = None
    question: Float[Tensor, "words dim"] | None = None
    budget: Budget | None = None
    scores: Scores | None = None
    segments: Segments | None = None
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    state: Mapping[str, Tensor] | None = None
    memo: dict[Any, Any] | None = None

    def once(self, compute: Callable[..., Result], *settings: Hashable) -> Result:
        """`compute(features, keep, weight, *settings)`, made once for all stages of a plan that read the same tokens.

        `compute` is a function of a module, so that two stages name the same one. Do not write to the result.
        """
        read = (self.features, self.keep, self.weight)
        if self.memo is None:
            return compute(*read, *settings)
        known = self.memo.get((compute, settings))
        if known is None or any(old is not new for old, new in zip(known[0], read, strict=True)):
            known = self.memo[compute, settings] = read, compute(*read, *settings)
        result: Result = known[1]
        return result

    @property
    def living_features(self) -> Float[Tensor, "frames tokens dim"]:
        """Features in float32, zero where a token is dead; made once for all stages of a plan. Do not write to it."""
        return self.once(_living)


def _living(
    features: Float[Tensor, "frames tokens dim"], keep: Bool[Tensor, "frames tokens"], weight: Tensor
) -> Float[Tensor, "frames tokens dim"]:
    """`VideoTokens.living_features`."""
    return torch.where(keep.unsqueeze(-1), features, 0.0).float()


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerTokens:
    """Step 9, in prefill: the visual tokens of one video after decoder layer `layer` (zero-based) of `layers`.

    `hidden` is what the coming layer would read, `hidden_before` what `layer` read; both in order of appearance.
    `text` holds the hidden states of the text after the last visual token of the prompt, template tokens included.
    `visual_inputs` and `text_inputs` are what entered the first layer: all the video's tokens then, and that text.
    `attention(rows, of=...)` gives softmaxed attention of query rows to the visual tokens, in float32: rows are
    "last" (the prompt's last token) or indices into `text`, `of` is the "previous" layer or the "next" one (its norm,
    queries and keys). `rotary(rows)` gives the logit that the previous layer's rotary embedding alone puts between
    query rows and the visual tokens: that of queries and keys whose channels are all one. `keys(of)` gives the
    previous layer's keys, rotated, of the "visual" tokens or of the "text", in float32; `final_norm` is the norm
    behind the last layer, applied in float32. `turn` numbers the stage's own prune points, `offered` is how many
    tokens came to its first. `count` is how many to leave, or None when nothing but the stage says it. `afford` is
    how many visual tokens each coming layer may be given, the same for all, if the whole depth is to meet the
    policy's retention ratio; None without a ratio. `token_grid` is (t, h, w) in visual tokens, as the vision tower
    made them: `frame` and `token` count in it. `memo` belongs to the core, which begins a new one with every prompt;
    see `once`.
    """

    hidden: Float[Tensor, "visual dim"]
    hidden_before: Float[Tensor, "visual dim"]
    text: Float[Tensor, "words dim"]
    frame: Int[Tensor, " visual"]
    token: Int[Tensor, " visual"]
    weight: Float[Tensor, " visual"]
    layer: int
    layers: int
    attention: Callable[..., Float[Tensor, "heads rows visual"]]
    keys: Callable[[str], Float[Tensor, "heads asked dim"]]
    rotary: Callable[..., Float[Tensor, "rows visual"]]
    final_norm: Callable[[Float[Tensor, "asked dim"]], Float[Tensor, "asked dim"]]
    rng: torch.Generator
    visual_inputs: Float[Tensor, "entered dim"]
    text_inputs: Float[Tensor, "words dim"]
    turn: int = 0
    offered: int = 0
    count: int | None = None
    afford: float | None = None
    token_grid: tuple[int, int, int] | None = None
    budget: Budget | None = None
    scores: Scores | None = None
    segments: Segments | None = None
    memo: dict[Any, Any] | None = None

    def once(self, compute: Callable[..., Result], *settings: Hashable) -> Result:
        """`compute(visual_inputs, text_inputs, *settings)`, made once for all prune points of a video in a prompt.

        `compute` is a function of a module. Do not write to the result.
        """
        known = {} if self.memo is None else self.memo
        if (compute, settings) not in known:
            known[compute, settings] = compute(self.visual_inputs, self.text_inputs, *settings)
        result: Result = known[compute, settings]
        return result


@dataclass(frozen=True, eq=False, kw_only=True)
class PromptKV:
    """Step 10, once in prefill: what the cache of decoder layer `layer` (zero-based) of `layers` holds of the prompts.

    `valid` marks real visual tokens (rows differ in number), `counts` says the same in Python integers. `entries(of)`
    gives the "keys" (rotated) or the "values" of the visual tokens, in float32, 0 where not valid. `attention(rows)`
    gives the softmaxed attention to them, in float32, of the last `rows` tokens of the text behind the last visual
    token: all of it where there are fewer, the prompt's last token where there is none, and 0 for rows that are not
    there. A stage answers with `Scores`, of which the core keeps the highest: as many as `Stage.leaves` says.
    """

    entries: Callable[[str], Float[Tensor, "rows kv_heads visual dim"]]
    attention: Callable[[int], Float[Tensor, "rows heads asked visual"]]
    valid: Bool[Tensor, "rows visual"]
    counts: tuple[int, ...]
    layer: int
    layers: int


@dataclass(frozen=True, eq=False, kw_only=True)
class DecodeStep:
    """Step 10: one decode step of a batch, seen from the prune point of a stage.

    `attention` is the softmaxed attention of the newest token to the visual tokens of its row: the softmax runs over
    all keys and is not renormalised; float32. `valid` marks real visual tokens (rows differ in number); `counts` says
    the same in Python integers, so that widths need no read-back from the device. `state` is what the stage returned
    for the step before, or None at the first.
    """

    attention: Float[Tensor, "rows heads visual"]
    valid: Bool[Tensor, "rows visual"]
    counts: tuple[int, ...]
    layer: int
    state: dict[str, Any] | None = None


class ShownTokens(LayerTokens):
    """A `LayerTokens` some fields of which are made when they are first read, by the function in `late`."""

    def __init__(self, late: Mapping[str, Callable[[], Any]] | None = None, **fields: Any) -> None:
        vars(self).update(fields, _late=late or {})

    def __getattr__(self, name: str) -> Any:
        # asked for names that are not there alone; of a field without a default the class has nothing
        make = vars(self).get("_late", {}).get(name)
        if make is None:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        vars(self)[name] = value = make()
        return value
