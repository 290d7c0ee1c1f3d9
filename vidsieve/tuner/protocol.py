"""`Bench`: the protocol by which the tuner runs policies on a model.

The tuner knows no model, no video file and no task; the caller who has them implements `Bench`.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoShape
from vidsieve.framework.task import Example, Outcome
from vidsieve.tuner.request import Metric

Kind = Literal["frames", "pixels"]
NAMES: dict[Kind, str] = {"frames": "fewer-frames", "pixels": "lower-resolution"}


@dataclass(frozen=True, kw_only=True)
class SmallerInput:
    """The same request with fewer frames, or with frames of fewer pixels, in place of a policy.

    `ratio` is the share of the frames, or of the pixels of each frame, that is left; above 0, at most 1.
    """

    kind: Kind
    ratio: float

    @property
    def name(self) -> str:
        """Its name in reports."""
        return NAMES[self.kind]

    @property
    def hash(self) -> str:
        """Identifies the intervention, as a policy's hash does."""
        return f"{self.kind}-{self.ratio:.6g}"


Intervention = Policy | SmallerInput
"""What is done to a request: a policy, or a smaller input as a control."""


@dataclass(frozen=True, kw_only=True)
class EncodingWork:
    """Clips that were read and encoded for scoring, and those that were known and so were not, with seconds.

    `saved_seconds` is what those had taken when they were encoded, perhaps in an earlier run.
    """

    passes: int = 0
    seconds: float = 0.0
    saved_passes: int = 0
    saved_seconds: float = 0.0

    def __add__(self, other: "EncodingWork") -> "EncodingWork":
        return EncodingWork(
            passes=self.passes + other.passes,
            seconds=self.seconds + other.seconds,
            saved_passes=self.saved_passes + other.saved_passes,
            saved_seconds=self.saved_seconds + other.saved_seconds,
        )

    def sentence(self) -> str:
        """Write it in one line."""
        return (
            f"clips encoded once: {self.passes} in {self.seconds:.1f} s; {self.saved_passes} further passes of the "
            f"vision tower were spared, {self.saved_seconds:.1f} s with reading"
        )

    def to_dict(self) -> dict[str, float]:
        """Return plain numbers, seconds rounded to tenths."""
        return {
            "passes": self.passes,
            "seconds": round(self.seconds, 1),
            "saved_passes": self.saved_passes,
            "saved_seconds": round(self.saved_seconds, 1),
        }


@runtime_checkable
class Bench(Protocol):
    """A model on a device with a workload, as callables. Everywhere `policy=None` is the uncompressed model.

    Attributes:
      shape   sizes of a typical request's video: decides which retention ratios are attainable
      offers  inputs and signals the adapter can give; a policy that needs more is set aside with that reason
      clips   how many different clips latency is measured on in turn; eight or more where there are as many
      smaller kinds of smaller input it can give, of "frames" and "pixels"; empty where sizes are fixed
      hooks   (optional) stage hooks that the model's adapter carries out; where it does not say, all of them
      notices (optional) sentences for the user, such as on what makes its timings doubtful
      encoding (optional) the `EncodingWork` of scoring so far, or None
    """

    shape: VideoShape
    offers: frozenset[str]
    clips: int
    smaller: frozenset[str]

    def describe(self) -> Mapping[str, str]:
        """Return facts for provenance, as text: model, checkpoint, revision, device, dtype, attn, threads, frames, ...

        Versions of the libraries belong here too. Two benches with equal descriptions must give equal accuracies.
        """
        ...

    def clip_shape(self, clip_index: int) -> Hashable:
        """Return the token shape of a clip, cheaply: clips of equal shape share their warm-up."""
        ...

    def timed(self, policy: Intervention | None, clip_index: int, metric: Metric) -> Mapping[str, float]:
        """Run one request and time it: wall clock, device synchronised on both sides.

        The answer must hold `ttft_ms` for metric "ttft" and `e2e_ms` for "e2e". Parts are welcome too: any of
        video_ms (decoding), preprocess_ms, vision_ms, compress_ms, prefill_ms, decode_step_ms. `clock_ratio`, where
        it is known, is the device's clock right after the run ÷ its nominal one: throttled runs are dropped.
        """
        ...

    def score(self, policy: Intervention | None, examples: Sequence[Example]) -> Iterable[Outcome]:
        """Answer the examples in their order, one outcome each; lazily if possible, so that progress shows.

        Deterministic: the same policy and example give the same outcome whatever else is scored.
        """
        ...

    def renew(self) -> bool:
        """Restart in a fresh process with nothing warm; False where the bench shares the caller's process."""
        ...
