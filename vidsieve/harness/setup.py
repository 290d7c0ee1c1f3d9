"""What is run and on what: the options that `tune`, `run` and `eval` share, checked once."""

from dataclasses import dataclass
from typing import Annotated

from vidsieve.cli.options import option
from vidsieve.framework.errors import UnknownNameError, UsageError

DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
DEFAULT_QUESTION = "What happens in this video?"

_MODEL, _DATA, _WORK = "Model", "Data", "Workload"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Model, data and workload as asked. None means: the default, which the first line of output then tells.

    Raises:
        UsageError: options that contradict each other, or a value out of range.
    """

    model: Annotated[
        str | None,
        option("--model", _MODEL, "A family (see `vidsieve ls models`), a hub id, or a checkpoint folder."),
    ] = None
    checkpoint: Annotated[
        str | None,
        option(
            "--checkpoint",
            _MODEL,
            "The hub id or folder that stands for the family of --model; a hub id is downloaded.",
        ),
    ] = None
    device: Annotated[
        str | None, option("--device", _MODEL, "cpu, cuda or cuda:N.  (default: cuda if there is one)")
    ] = None
    dtype: Annotated[
        str, option("--dtype", _MODEL, f"{', '.join(DTYPES)}; auto is float32 on a CPU, the checkpoint's own on a GPU.")
    ] = "auto"
    attn: Annotated[str, option("--attn", _MODEL, f"Attention kernel: {', '.join(ATTENTIONS)}.")] = "sdpa"
    threads: Annotated[
        int | None, option("--threads", _MODEL, "CPU threads.  (default: torch's; bundled models: 1)")
    ] = None
    plugin: Annotated[
        list[str] | None, option("--plugin", _MODEL, "A Python file with stages of your own. Repeatable.", "FILE")
    ] = None
    data: Annotated[
        str | None,
        option(
            "--data",
            _DATA,
            "Labelled questions, one JSON object a line: video, question, options, answer.",
            "FILE.jsonl",
        ),
    ] = None
    videos: Annotated[
        str | None,
        option("--videos", _DATA, "Videos without labels: the score is agreement with the uncompressed model.", "DIR"),
    ] = None
    question: Annotated[
        str | None,
        option("--question", _DATA, f"What to ask of every video in --videos.  (default: {DEFAULT_QUESTION})"),
    ] = None
    rung: Annotated[
        str | None,
        option(
            "--rung", _DATA, "Difficulty of the bundled models' own task: static, jitter or cuts.  (default: static)"
        ),
    ] = None
    frames: Annotated[int | None, option("--frames", _WORK, "Frames taken from each video, evenly.  (default: 16)")] = (
        None
    )
    fps: Annotated[float | None, option("--fps", _WORK, "Frames taken per second of video, instead of --frames.")] = (
        None
    )
    max_pixels: Annotated[
        int | None, option("--max-pixels", _WORK, "Most pixels of a frame.  (default: the checkpoint's own)")
    ] = None
    batch_size: Annotated[int | None, option("--batch-size", _WORK, "Videos per request.  (default: 1)")] = None
    max_new_tokens: Annotated[
        int | None, option("--max-new-tokens", _WORK, "Most tokens of an answer.  (default: 32, bundled models 4)")
    ] = None

    def __post_init__(self) -> None:
        self._refuse_both("frames", "fps")
        self._refuse_both("data", "videos")
        for name in ("frames", "max_pixels", "batch_size", "max_new_tokens", "threads", "fps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{_flag(name)}: must be above 0, got {value}.")
        for name, known in (("dtype", DTYPES), ("attn", ATTENTIONS)):
            if getattr(self, name) not in known:
                raise UnknownNameError(_flag(name), name, getattr(self, name), known)
        if self.question is not None and self.videos is None:
            raise UsageError("--question: belongs to --videos; with --data every line has its own question.")
        if self.rung is not None and (self.data or self.videos):
            raise UsageError("--rung: chooses the bundled task, but --data or --videos was given; leave one out.")

    def _refuse_both(self, one: str, other: str) -> None:
        if getattr(self, one) is not None and getattr(self, other) is not None:
            raise UsageError(f"{_flag(one)} and {_flag(other)}: exclude each other; give one of them.")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
