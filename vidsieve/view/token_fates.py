"""What became of every visual token of a video, read out of a report: the truth that every picture draws."""

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidsieve.framework.errors import UsageError
from vidsieve.framework.plans import MergeStep
from vidsieve.framework.report import Report
from vidsieve.framework.trace import KVTrace, LayerTrace, VideoTrace


class Fate(IntEnum):
    """What became of a token. `MERGED` melted into another before the language model, `LATER` left inside it."""

    ABSENT = 0  # the model's own processor left it out
    SKIPPED = 1  # its frame never entered the vision tower
    DROPPED = 2
    MERGED = 3
    LATER = 4
    KEPT = 5


@dataclass(frozen=True, eq=False, kw_only=True)
class Fates:
    """One video under one policy. Units are what the vision tower encodes: a frame, or a patch of two.

    `target` is the flat number (`unit * tokens + token`) of the token that one melted into, −1 where it melted into
    none. `depth` counts the decoder layers that a token entered, `layers` those there are (1 where no layer stage
    ran). `budget` is each unit's share of the tokens and `score` the mean score of its tokens, NaN where there is none.
    `reads` is the share of each unit's cached entries that a decode step read, a row a step, NaN where there are none.
    """

    policy: str
    fate: Int[np.ndarray, "units tokens"]
    target: Int[np.ndarray, "units tokens"]
    depth: Int[np.ndarray, "units tokens"]
    grid: tuple[int, int]
    layers: int = 1
    points: tuple[int, ...] = ()
    budget: Float[np.ndarray, " units"] | None = None
    score: Float[np.ndarray, " units"] | None = None
    reads: Float[np.ndarray, "steps units"] | None = None
    reads_behind: int = 0
    requested_ratio: float | None = None
    kv_ratio: float | None = None
    by_layer: bool = False
    not_run: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    traced: bool = True

    @property
    def units(self) -> int:
        """How many there are, skipped ones included."""
        return len(self.fate)

    @cached_property
    def baseline(self) -> int:
        """Visual tokens of the uncompressed model."""
        return int((self.fate != Fate.ABSENT).sum())

    @cached_property
    def prompt_per_unit(self) -> Int[np.ndarray, " units"]:
        """Tokens of each unit in the prompt."""
        return (self.fate >= Fate.LATER).sum(axis=1)

    @cached_property
    def seen_per_unit(self) -> Float[np.ndarray, " units"]:
        """Tokens of each unit that the language model sees: with layer stages the mean over its layers."""
        return self.depth.sum(axis=1) / self.layers

    @cached_property
    def prompt_tokens(self) -> int:
        """Tokens in the prompt."""
        return int(self.prompt_per_unit.sum())

    @cached_property
    def entered(self) -> Int[np.ndarray, " layers"]:
        """Tokens that entered each decoder layer."""
        return (self.depth.reshape(-1, 1) > np.arange(self.layers)).sum(axis=0)

    @cached_property
    def attained_ratio(self) -> float:
        """Kept over baseline; with layer stages the mean over layers."""
        return float(self.entered.mean()) / self.baseline if self.baseline else 1.0

    @cached_property
    def sources(self) -> Int[np.ndarray, "units tokens"]:
        """How many other tokens melted into each."""
        flat = self.target[self.target >= 0]
        return np.bincount(flat, minlength=self.fate.size).reshape(self.fate.shape)

    @property
    def skipped_units(self) -> int:
        """Units that never entered the vision tower."""
        return int((self.fate == Fate.SKIPPED).all(axis=1).sum())

    @property
    def is_whole(self) -> bool:
        """Whether every token goes through the whole language model: there is nothing to see in the frames."""
        return bool(np.isin(self.fate, (Fate.KEPT, Fate.ABSENT)).all())

    def count(self, fate: Fate, unit: int | None = None) -> int:
        """Tokens of a fate, in one unit or in all."""
        return int(((self.fate if unit is None else self.fate[unit]) == fate).sum())


def fates_of(report: Report, video: int = 0) -> Fates:
    """Read what became of the tokens of one video of a call. Waits for the device.

    Raises:
        UsageError: the report is of a call without that video.
    """
    if not 0 <= video < len(report.keeps):
        has = f"{len(report.keeps)} video(s)" if report.keeps else "no video"
        raise UsageError(f"video {video}: the report of policy {report.policy_name!r} is of a call with {has}.")
    keep = report.keeps[video].cpu().numpy()
    units, tokens = keep.shape
    traced = len(report.traces) == len(report.keeps)
    trace = report.traces[video] if traced else VideoTrace(frames=units, tokens=tokens)
    encoded = np.arange(units) if trace.frame_index is None else trace.frame_index.cpu().numpy()
    into = _into(trace, keep[encoded].reshape(-1))
    places = (encoded[:, None] * tokens + np.arange(tokens)).reshape(-1)
    target = np.full(units * tokens, -1, dtype=np.int64)
    melted = (into >= 0) & (into != np.arange(into.size))
    target[places[melted]] = places[into[melted]]
    layers = trace.layers if trace.points and trace.layers else 1
    depth, behind = _depth(keep.reshape(-1), places, trace.points, layers)
    target = np.where(behind >= 0, behind, target)
    fate = np.where(keep.reshape(-1), np.where(depth < layers, Fate.LATER, Fate.KEPT), Fate.DROPPED)
    fate[places[melted]] = Fate.MERGED
    fate = fate.reshape(units, tokens)
    fate[np.setdiff1d(np.arange(units), encoded)] = Fate.SKIPPED
    if trace.alive is not None:
        fate[~trace.alive.cpu().numpy()] = Fate.ABSENT
    return Fates(
        policy=report.policy_name,
        fate=fate.astype(np.int64),
        target=target.reshape(units, tokens),
        depth=depth.reshape(units, tokens),
        grid=_grid(trace, tokens),
        layers=layers,
        points=tuple(point.layer for point in trace.points),
        budget=_budget(trace, encoded, units),
        score=_score(trace, encoded, units),
        reads=None if trace.kv is None else _reads(trace.kv, keep, depth.reshape(units, tokens), layers),
        reads_behind=0 if trace.kv is None else trace.kv.layer,
        requested_ratio=report.requested_ratio,
        kv_ratio=report.kv_ratio,
        by_layer=bool(trace.points),
        not_run=report.not_run,
        notes=report.notes,
        traced=traced,
    )


def _grid(trace: VideoTrace, tokens: int) -> tuple[int, int]:
    """Rows and columns of a unit's tokens; as near to a square as whole rows allow where it is unknown."""
    if trace.token_grid is not None and trace.token_grid[1] * trace.token_grid[2] == tokens:
        return trace.token_grid[1], trace.token_grid[2]
    rows = next(rows for rows in range(int(tokens**0.5), 0, -1) if tokens % rows == 0)
    return rows, tokens // rows


def _into(trace: VideoTrace, keep: Bool[np.ndarray, " all"]) -> Int[np.ndarray, " all"]:
    """The living token that each ends in: itself, the target it melted into, or −1 for none."""
    into = np.arange(keep.size)
    for step in trace.merges:
        into = np.where(into >= 0, _strongest(step, keep.size)[into], -1)
    return np.where((into >= 0) & keep[into], into, -1)


def _strongest(step: MergeStep, size: int) -> Int[np.ndarray, " all"]:
    """For each token the target in whose mean it weighs most (ties to the lower one), itself for a target, else −1."""
    source, target, weight = (part.cpu().numpy() for part in (step.source, step.target, step.coefficient))
    into = np.full(size, -1, dtype=np.int64)
    # the last that is written stands: the heaviest, of equal ones the lowest
    order = np.lexsort((-target, weight))
    into[source[order]] = target[order]
    living = step.targets.cpu().numpy().nonzero()[0]
    into[living] = living
    return into


def _depth(
    keep: Bool[np.ndarray, " all"], places: Int[np.ndarray, " encoded"], points: tuple[LayerTrace, ...], layers: int
) -> tuple[Int[np.ndarray, " all"], Int[np.ndarray, " all"]]:
    """How many layers each token entered, and into which token it melted inside the language model (−1: none)."""
    depth = np.where(keep, layers, 0)
    target = np.full(keep.size, -1, dtype=np.int64)
    alive = keep.copy()
    for point in points:
        stays = np.zeros_like(alive)
        stays[places[point.kept.cpu().numpy()]] = True
        gone = alive & ~stays
        depth[gone] = point.layer + 1
        if point.source is not None and point.target is not None:
            source, into = (places[part.cpu().numpy()] for part in (point.source, point.target))
            melts = gone[source]
            target[source[melts]] = into[melts]
        alive &= stays
    return depth, target


def _budget(trace: VideoTrace, encoded: Int[np.ndarray, " encoded"], units: int) -> Float[np.ndarray, " units"] | None:
    """Each unit's share; frames of one group share their line evenly."""
    if trace.budget is None:
        return None
    given = trace.budget.share if trace.budget.share is not None else trace.budget.counts
    assert given is not None
    share = given.double().cpu().numpy()
    return _over_units(share / share.sum() if share.sum() > 0 else np.full_like(share, 1 / share.size), encoded, units)


def _score(trace: VideoTrace, encoded: Int[np.ndarray, " encoded"], units: int) -> Float[np.ndarray, " units"] | None:
    """Mean score of each unit over the tokens that were alive then; infinite ones do not count."""
    if trace.scores is None:
        return None
    values = trace.scores.values.double()
    finite = values.isfinite()
    means = torch.where(finite, values, 0.0).sum(dim=1) / finite.sum(dim=1)
    return _over_units(means.cpu().numpy(), encoded, units)


def _over_units(
    values: Float[np.ndarray, " encoded"], encoded: Int[np.ndarray, " encoded"], units: int
) -> Float[np.ndarray, " units"]:
    every = np.full(units, np.nan)
    every[encoded] = values
    return every


def _reads(
    kv: KVTrace, keep: Bool[np.ndarray, "units tokens"], depth: Int[np.ndarray, "units tokens"], layers: int
) -> Float[np.ndarray, "steps units"]:
    """The share of each unit's entries that each step read, of those that a layer behind the KV stage holds."""
    flat = keep.reshape(-1).nonzero()[0]
    columns = _columns(kv, flat.size)
    # without layer stages every token of the prompt is in every layer
    held = (depth.reshape(-1)[flat] > (kv.layer if layers > 1 else 0)).astype(np.float64)
    unit = flat // keep.shape[1]
    whole = np.bincount(unit, weights=held, minlength=len(keep))
    rows = [
        np.bincount(unit, weights=held * step[kv.row].cpu().numpy()[columns], minlength=len(keep)) for step in kv.steps
    ]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack(rows) / np.where(whole > 0, whole, np.nan)


def _columns(kv: KVTrace, count: int) -> Int[np.ndarray, " kept"]:
    """The prompt columns of a video's kept tokens, in order."""
    places: Tensor = kv.visual[kv.row].nonzero().squeeze(1)
    return places[kv.before : kv.before + count].cpu().numpy()
