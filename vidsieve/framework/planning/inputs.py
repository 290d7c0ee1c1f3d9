"""What is known about one video before a policy runs, and the checks at that door."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidsieve.framework.composition import Composition
from vidsieve.framework.errors import InputError, PolicyError, suggest
from vidsieve.framework.records import INPUTS, SIGNALS, VideoShape


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamState:
    """What a policy remembers after `chunks` chunks of one video; `Policy.plan` makes it and takes it back.

    `kept` holds, by stage and hook, what their last plans said in `state`. Nothing else of a chunk is kept, so its size
    does not depend on how much of the video has passed.
    """

    policy_hash: str
    chunks: int = 0
    kept: Mapping[tuple[str, str], dict[str, Tensor]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """What it holds, in bytes."""
        return sum(value.numel() * value.element_size() for one in self.kept.values() for value in one.values())


@dataclass(frozen=True, eq=False, kw_only=True)
class VideoInput:
    """The visual tokens of one video and what is known about it; see `Policy.plan` for the fields."""

    features: Float[Tensor, "frames tokens dim"]
    token_grid: tuple[int, int, int] | None = None
    timestamps_s: Float[Tensor, " frames"] | None = None
    question: Float[Tensor, "words dim"] | None = None
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    frame_index: Int[Tensor, " frames"] | None = None
    layers: int | None = None
    seed: int = 0
    video_index: int = 0
    units: int | None = None
    alive: Bool[Tensor, "units tokens"] | None = None
    state: StreamState | None = None

    @cached_property
    def living(self) -> Bool[Tensor, "frames tokens"] | None:
        """`alive` of the encoded frames."""
        if self.alive is None or self.frame_index is None:
            return self.alive
        return self.alive[self.frame_index.long().to(self.alive.device)]

    @cached_property
    def shape(self) -> VideoShape:
        """The sizes of what was encoded, before any token is dropped."""
        frames, tokens, _ = self.features.shape
        return VideoShape(frames, tokens, self.layers or 1, alive=_per_frame(self.living))

    @cached_property
    def baseline(self) -> VideoShape:
        """The sizes of the uncompressed video: units skipped in step 1 count too."""
        if self.units is None and self.frame_index is None:
            return self.shape
        return replace(self.shape, frames=self.units or self.features.shape[0], alive=_per_frame(self.alive))


def _per_frame(alive: Tensor | None) -> tuple[int, ...] | None:
    """Living tokens of each frame; one read-back. None for all."""
    return None if alive is None else tuple(alive.sum(dim=1).tolist())


def begin(policy: Composition, video: VideoInput) -> StreamState:
    """Check what is known about a video, and give the state to go on from: a fresh one for the first chunk.

    Raises:
        InputError: tensors do not fit together, or the state is another policy's.
        PolicyError: an input that a stage needs was not given.
    """
    _check_sizes(policy, video)
    _check_needs(policy, video)
    state = video.state
    if state is None:
        return StreamState(policy_hash=policy.hash)
    if state.policy_hash != policy.hash:
        raise InputError(
            f"policy {policy.name!r}: state was made by another policy ({state.policy_hash}, this is {policy.hash}); "
            "go on with the policy that planned the first chunk, or start without state."
        )
    return state


def _check_sizes(policy: Composition, video: VideoInput) -> None:
    """Tensors must fit together. Raises InputError naming the argument, what it must be and what came."""
    where, features = f"policy {policy.name!r}", video.features
    if features.dim() != 3 or features.numel() == 0 or not features.is_floating_point():
        kind = str(features.dtype).removeprefix("torch.")
        raise InputError(
            f"{where}: features must be floats of (frames, tokens, dim) and not empty, got {kind} of "
            f"{tuple(features.shape)}."
        )
    frames, tokens, dim = features.shape
    units = video.units or frames
    wanted = {
        "timestamps_s": (frames,),
        "frame_index": (frames,),
        "question": (None, dim),
        "alive": (units, tokens),
    }
    for name, shape in wanted.items():
        value = getattr(video, name)
        if value is not None and not _fits(value, shape):
            text = ", ".join("any" if size is None else str(size) for size in shape)
            raise InputError(f"{where}: {name} must have shape ({text}), got {tuple(value.shape)}.")
    if video.units is not None and (video.units < frames or (video.units > frames and video.frame_index is None)):
        raise InputError(
            f"{where}: units must be at least the {frames} frames, and frame_index must say which they are, got "
            f"{video.units}."
        )
    grid = video.token_grid
    if grid is not None and (len(grid) != 3 or grid[0] * grid[1] * grid[2] != frames * tokens or grid[0] != frames):
        raise InputError(
            f"{where}: token_grid must be (t, h, w) with t = {frames} frames and h * w = {tokens} tokens, got "
            f"{tuple(grid)}."
        )
    for name in video.signals:
        if name not in SIGNALS:
            raise InputError(f"{where}: no signal named {name!r}. {suggest(name, SIGNALS)}")
        _check_signal(where, name, video.signals[name], frames, tokens)


def _check_signal(where: str, name: str, value: Tensor, frames: int, tokens: int) -> None:
    """A float a token, or a row of them for what has a width."""
    wide = name == "pre_merger_features"
    if not value.is_floating_point() or not _fits(value, (frames, tokens, None) if wide else (frames, tokens)):
        kind = str(value.dtype).removeprefix("torch.")
        raise InputError(
            f"{where}: signal {name} must be floats of ({frames}, {tokens}{', any' if wide else ''}), got {kind} of "
            f"{tuple(value.shape)}."
        )


def _fits(value: Tensor, shape: tuple[int | None, ...]) -> bool:
    return value.dim() == len(shape) and all(
        want is None or want == have for want, have in zip(shape, value.shape, strict=True)
    )


def _check_needs(policy: Composition, video: VideoInput) -> None:
    """Every input a stage needs must be there. Raises PolicyError naming stage and argument."""
    given = {name for name in INPUTS if getattr(video, name) is not None} | set(video.signals)
    if policy.needs() <= given:
        return
    for bound in policy.video_stages:
        for name in sorted(bound.stage.needs() - given):
            how = f"{name}=..." if name in INPUTS else f"signals={{{name!r}: ...}}"
            raise PolicyError(
                f"policy {policy.name!r}, stage {bound.label!r}: needs {name}, which was not given. Pass {how}; inside "
                "a model, the adapter of that model family has to offer it."
            )
