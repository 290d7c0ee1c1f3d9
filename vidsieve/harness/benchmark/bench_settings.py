"""What is measured and on what: the settings of a benchmark, checked once. No torch is imported here."""

from dataclasses import dataclass, replace

from vidsieve.framework.errors import UsageError
from vidsieve.framework.settings_field import setting
from vidsieve.harness.setup import ModelSetup, Setup

_MODEL, _WORK, _MEASURE = "Model", "Workload", "Measurement"
DEFAULT_FRAMES = 32
DEFAULT_SIZE = (224, 224)
DEFAULT_POLICIES = ("vidcom2", "dycoke", "pixel-change", "random")


@dataclass(frozen=True, kw_only=True)
class BenchSettings(ModelSetup):
    """Model, workload and policies of a benchmark. None means the default, which the head of the result states.

    Raises:
        UsageError: settings that contradict each other, or a value out of range.
    """

    random_weights: str | None = setting(
        None,
        _MODEL,
        "Instead of a model: one of this shape with random weights, without a download: llava-onevision-0.5b, "
        "llava-onevision-7b, qwen2-vl-2b, qwen2-vl-7b, qwen2.5-vl-7b, qwen3-vl-8b.",
        metavar="NAME",
    )
    layers: int | None = setting(
        None, _MODEL, "Cut random weights to so many decoder layers, and the vision tower in proportion."
    )
    compile: bool = setting(False, _MODEL, "Compile the decoder (torch.compile) for what is timed.")
    video: list[str] | None = setting(
        None, _WORK, "A video file, decoded in every request. Repeatable.  (default: synthetic frames)", metavar="FILE"
    )
    frames: str | None = setting(
        None, _WORK, f"Frames of a video; several with commas are measured in turn.  (default: {DEFAULT_FRAMES})"
    )
    resolution: str | None = setting(
        None,
        _WORK,
        f"Width and height of synthetic frames.  (default: {DEFAULT_SIZE[0]}x{DEFAULT_SIZE[1]})",
        metavar="WxH",
    )
    max_pixels: int | None = setting(None, _WORK, "Most pixels of a frame.  (default: the checkpoint's own)")
    batch_size: int | None = setting(None, _WORK, "Videos per request.  (default: 1)")
    max_new_tokens: int | None = setting(None, _WORK, "Tokens of every answer.  (default: 8)")
    policies: list[str] | None = setting(
        None,
        _MEASURE,
        "Names, files or folders, with commas between or repeated; `all` for every published one.  (default: "
        f"{','.join(DEFAULT_POLICIES)})",
    )
    retention: str | None = setting(
        None, _MEASURE, "Shares of the visual tokens to keep, with commas between.  (default: each policy's own)"
    )
    repeats: int = setting(6, _MEASURE, "Timed requests of each policy, in turn with the uncompressed model.")
    seconds: float = setting(
        600.0, _MEASURE, "For each number of frames: after so many seconds and three turns, no further turn begins."
    )
    seed: int = setting(0, _MEASURE, "Of random weights and synthetic frames.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for one, other in (("model", "random_weights"), ("checkpoint", "random_weights"), ("video", "resolution")):
            self._refuse_both(one, other)
        if self.model is None and self.random_weights is None:
            raise UsageError(
                "`model`: is missing. Give one, or `random_weights` with a name such as qwen2-vl-2b, which downloads "
                "nothing."
            )
        if self.layers is not None and self.random_weights is None:
            raise UsageError("`layers`: cuts a model with random weights; give `random_weights`, or leave it out.")
        self._refuse_not_positive("layers", "max_pixels", "batch_size", "max_new_tokens", "repeats", "seconds")
        self.frame_counts(), self.size(), self.ratios()  # they refuse what cannot be read

    def frame_counts(self) -> list[int]:
        """List the numbers of frames, in order."""
        if self.frames is None:
            return [DEFAULT_FRAMES]
        counts = [int(part) if part.strip().isdecimal() else 0 for part in str(self.frames).split(",")]
        if min(counts) < 1:
            raise UsageError(f"`frames`: whole numbers above 0 with commas between, such as 32,64; got {self.frames}.")
        return list(dict.fromkeys(counts))

    def size(self) -> tuple[int, int]:
        """Return (width, height) of synthetic frames."""
        if self.resolution is None:
            return DEFAULT_SIZE
        parts = self.resolution.lower().split("x")
        if len(parts) != 2 or not all(part.isdecimal() and 28 <= int(part) <= 8192 for part in parts):
            raise UsageError(f"`resolution`: WIDTHxHEIGHT, each 28 to 8192, such as 640x360; got {self.resolution}.")
        return int(parts[0]), int(parts[1])

    def ratios(self) -> list[float | None]:
        """List the retention ratios; [None] for each policy's own."""
        if self.retention is None:
            return [None]
        from vidsieve.framework.composition import check_ratio  # loads torch

        found: list[float | None] = []
        for part in str(self.retention).split(","):
            try:
                ratio = float(part)
            except ValueError:
                raise UsageError(f"`retention`: numbers with commas between, such as 0.5,0.25; got {part!r}.") from None
            check_ratio("`retention`", ratio)
            found.append(ratio)
        return list(dict.fromkeys(found))

    def setup(self, frames: int) -> Setup:
        """Return what loading and running need, for one number of frames."""
        shared = {name: getattr(self, name) for name in ModelSetup.__dataclass_fields__}
        return Setup(
            **shared,
            frames=frames,
            max_pixels=self.max_pixels,
            batch_size=self.batch_size or 1,
            max_new_tokens=self.max_new_tokens or 8,
            feature_store="off",
        )

    def loading(self) -> Setup:
        """Return what loading needs; the model is the same for every number of frames."""
        return replace(self.setup(1), frames=None)
