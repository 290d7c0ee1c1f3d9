"""What stages decided about a video, kept by reference so that it can be shown later; nothing is read back here."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidsieve.framework.plans import Budget, MergeStep, Scores

MOST_STEPS = 256
"""Decode steps of a call of which is remembered what they read."""


@dataclass(frozen=True, eq=False)
class LayerTrace:
    """What a prune point left: `kept` are the tokens that went on behind decoder layer `layer` (zero-based).

    Where the point merged, `source` melted into `target`, pair by pair.
    """

    layer: int
    kept: Int[Tensor, " kept"]
    source: Int[Tensor, " pairs"] | None = None
    target: Int[Tensor, " pairs"] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class KVTrace:
    """What decode steps read of the visual KV entries behind decoder layer `layer` (zero-based).

    `steps` holds for each step the prompt columns read, of which `visual` are visual tokens; `row` is this video's
    row in both. `before` of the row's visual tokens stand in front of this video's.
    """

    layer: int
    steps: Sequence[Bool[Tensor, "rows prompt"]]
    visual: Bool[Tensor, "rows prompt"]
    row: int
    before: int


@dataclass(frozen=True, eq=False, kw_only=True)
class VideoTrace:
    """What the stages decided about one video. Tokens are named by flat numbers, `frame * tokens + token`, counted
    over the encoded frames.

    `token_grid` is (t, h, w) of these. `frame_index` says which units of the video they are, None for all; `alive`
    marks, among all units, the tokens that the uncompressed model has, None for all. `budget` and `scores` are the
    last that a stage made, also where a later stage used them up. `layers` is the depth of the decoder where layer
    stages ran. `kv` is None where no KV stage ran.
    """

    frames: int
    tokens: int
    token_grid: tuple[int, int, int] | None = None
    timestamps_s: Float[Tensor, " frames"] | None = None
    frame_index: Int[Tensor, " frames"] | None = None
    alive: Bool[Tensor, "units tokens"] | None = None
    budget: Budget | None = None
    scores: Scores | None = None
    merges: tuple[MergeStep, ...] = ()
    points: tuple[LayerTrace, ...] = ()
    layers: int | None = None
    kv: KVTrace | None = None
