"""What is run and on what: the settings that searches, single runs and evaluations share, checked once."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vidsieve.framework.errors import UnknownNameError, UsageError
from vidsieve.framework.registry import default
from vidsieve.framework.settings_field import setting

if TYPE_CHECKING:
    from vidsieve.framework.registry import Registry

DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
DEFAULT_QUESTION = "What happens in this video?"

_MODEL, _DATA, _WORK = "Model", "Data", "Workload"


@dataclass(frozen=True, kw_only=True)
class ModelSetup:
    """The model and how it is run.

    Raises:
        UsageError: a value out of range or not known.
    """

    model: str | None = setting(None, _MODEL, "A family (see `vidsieve ls models`), a hub id, or a checkpoint folder.")
    checkpoint: str | None = setting(
        None, _MODEL, "The hub id or folder that stands for the family of `model`; a hub id is downloaded."
    )
    device: str | None = setting(None, _MODEL, "cpu, cuda or cuda:N.  (default: cuda if there is one)")
    dtype: str = setting(
        "auto", _MODEL, f"{', '.join(DTYPES)}; auto is float32 on a CPU, the checkpoint's own on a GPU."
    )
    attn: str = setting("sdpa", _MODEL, f"Attention kernel: {', '.join(ATTENTIONS)}.")
    threads: int | None = setting(None, _MODEL, "CPU threads.  (default: torch's; bundled models: 1)")
    plugin: list[str] | None = setting(
        None, _MODEL, "A Python file with stages of your own. Repeatable.", metavar="FILE"
    )

    def __post_init__(self) -> None:
        self._refuse_not_positive("threads")
        for name, known in (("dtype", DTYPES), ("attn", ATTENTIONS)):
            if getattr(self, name) not in known:
                raise UnknownNameError(f"`{name}`", name, getattr(self, name), known)

    def _refuse_not_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"`{name}`: must be above 0, got {value}.")

    def _refuse_both(self, one: str, other: str) -> None:
        if getattr(self, one) is not None and getattr(self, other) is not None:
            raise UsageError(f"`{one}` and `{other}`: exclude each other; give one of them.")


@dataclass(frozen=True, kw_only=True)
class Setup(ModelSetup):
    """Model, data and workload as given. None means the default, which the first line of output states.

    Raises:
        UsageError: settings that contradict each other, or a value out of range.
    """

    data: str | None = setting(
        None,
        _DATA,
        "Labelled questions, one JSON object a line: video, question, options, answer; or the folder of MVBench, "
        "Video-MME, MLVU or LongVideoBench.",
        metavar="FILE.jsonl",
    )
    videos: str | None = setting(
        None, _DATA, "Videos without labels: the score is agreement with the uncompressed model.", metavar="DIR"
    )
    question: str | None = setting(
        None, _DATA, f"What to ask of every video in `videos`.  (default: {DEFAULT_QUESTION})"
    )
    skip_bad: bool = setting(False, _DATA, "Go on without the videos that cannot be read, and say which.")
    rung: str | None = setting(
        None, _DATA, "Difficulty of the bundled models' own task: static, jitter or cuts.  (default: static)"
    )
    frames: int | None = setting(None, _WORK, "Frames taken from each video, evenly.  (default: 16)")
    fps: float | None = setting(None, _WORK, "Frames taken per second of video, instead of `frames`.")
    max_pixels: int | None = setting(None, _WORK, "Most pixels of a frame.  (default: the checkpoint's own)")
    batch_size: int | None = setting(None, _WORK, "Videos per request.  (default: 1)")
    max_new_tokens: int | None = setting(None, _WORK, "Most tokens of an answer.  (default: 32, bundled models 4)")
    whole_prompts: bool = setting(
        False,
        _WORK,
        "Score every prompt whole, also where questions could share their video's prefill: to measure what that saves.",
    )
    feature_store: str | None = setting(
        None,
        _WORK,
        "Where encoded videos are kept for scoring: a folder, `memory` for this run only, or `off` to encode them "
        "every time.  (default: a folder in the user's cache)",
        metavar="DIR",
    )
    feature_store_gb: float = setting(10.0, _WORK, "Most gigabytes of that folder; what was used longest ago goes.")

    def __post_init__(self) -> None:
        self._refuse_both("frames", "fps")
        self._refuse_both("data", "videos")
        super().__post_init__()
        self._refuse_not_positive("frames", "max_pixels", "batch_size", "max_new_tokens", "fps", "feature_store_gb")
        if self.question is not None and self.videos is None:
            raise UsageError("`question`: belongs to `videos`; in `data` every line has its own question.")
        if self.rung is not None and (self.data or self.videos):
            raise UsageError("`rung`: chooses the bundled task, but `data` or `videos` was given; leave one out.")


def add_plugins(files: Sequence[str] | None) -> "Registry":
    """Load `files` into this process's registry. Warns of installed plugins that cannot be imported.

    Raises:
        PluginError: a file is missing, fails to import, or registers nothing.
    """
    registry = default()
    for file in files or ():
        registry.add_file(file)
    registry.policies  # noqa: B018  # loads the installed plugins, which fills `failures`
    for plugin, why in registry.failures.items():
        warnings.warn(f"plugin {plugin}: could not be imported: {why}", stacklevel=2)
    return registry
