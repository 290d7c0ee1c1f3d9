"""The preprocessing settings that a checkpoint carries with its weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidsieve.framework.errors import MediaError

# Where the settings of a video processor stand, as transformers searches them: the first that has them wins.
NESTED = ("processor_config.json", "video_processor")
FLAT = ("video_preprocessor_config.json", "preprocessor_config.json")
TEMPLATES = ("chat_template.jinja", "chat_template.json")

REQUIRED = {"do_resize": True, "do_rescale": True}
RESAMPLE_MODES = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers
ERNIE_FONT = "Roboto-Regular.ttf"  # of transformers' Ernie4_5_VLMoeVideoProcessor


@dataclass(frozen=True)
class Settings:
    """video: the video processor's settings.  processor: those of the processor around it.

    chat_template: the checkpoint's own Jinja template, if it stands in a file of its own.
    font: the font file that Ernie-4.5-VL writes times on frames with, where the checkpoint has it.
    """

    video: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    font: Path | None = None

    def resample(self, default: int = 3) -> str:
        """Choose the interpolation by torch's name (see `check_supported`); `default` is PIL's number."""
        number = self.video.get("resample")
        return RESAMPLE_MODES.get(default if number is None else number, RESAMPLE_MODES[default])

    def normalisation(self, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
        """Make keyword arguments for `normalise`, with the family's `mean` and `std` where none are given."""
        whether = self.video.get("do_normalize") in (None, True)
        return {
            "image_mean": tuple(self.video.get("image_mean") or mean) if whether else None,
            "image_std": tuple(self.video.get("image_std") or std),
            "rescale_factor": self.video.get("rescale_factor") or 1 / 255,
        }

    def pixel_bounds(self, low: int, high: int, *, by_name: bool = False) -> tuple[int, int]:
        """Read (least, most) pixels, the family's `low` and `high` where none are given.

        `by_name`: the older `min_pixels` and `max_pixels` count too, before `size`.
        """
        size, named = self.video.get("size") or {}, self.video if by_name else {}
        return (
            named.get("min_pixels") or size.get("shortest_edge") or low,
            named.get("max_pixels") or size.get("longest_edge") or high,
        )


def load_settings(checkpoint: str | Path, *, revision: str | None = None, with_font: bool = False) -> Settings:
    """Load the settings in the folder or hub repository `checkpoint`; empty where it has none. The font only if wanted.

    Raises MediaError for a file that is no JSON and for a setting that our own preprocessing cannot follow.
    """
    processor = _read_json(checkpoint, NESTED[0], revision)
    video = processor.get(NESTED[1])
    for name in FLAT:
        video = video or _read_json(checkpoint, name, revision)
    video = video or {}
    template = processor.get("chat_template") or _read_template(checkpoint, revision)
    font = find_file(checkpoint, video.get("font") or ERNIE_FONT, revision) if with_font else None
    return Settings(video, processor, template, font)


def check_supported(settings: Settings, required: Mapping[str, Any], checkpoint: str | Path) -> None:
    """Refuse settings that only transformers' own processor can follow. Raises MediaError that names them."""
    wanted = REQUIRED | dict(required)
    wrong = [k for k, only in wanted.items() if settings.video.get(k, only) not in (only, None)]
    if settings.video.get("resample") not in (None, *RESAMPLE_MODES):
        wrong.append("resample")
    if wrong:
        came = ", ".join(f"{k}={settings.video[k]}" for k in wrong)
        raise MediaError(
            f"{checkpoint}: its video settings {came} are not supported here; "
            "install a working torchvision, so that transformers' own processor is used"
        )


def find_file(checkpoint: str | Path, name: str, revision: str | None = None) -> Path | None:
    """Find the file `name` of a folder or hub repository (from the local cache where it is there), or None."""
    from transformers.utils import cached_file

    if Path(checkpoint).is_dir():
        file = Path(checkpoint) / name
        return file if file.is_file() else None
    found = cached_file(
        str(checkpoint),
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return Path(found) if found else None


def _read_json(checkpoint: str | Path, name: str, revision: str | None) -> dict[str, Any]:
    file = find_file(checkpoint, name, revision)
    if file is None:
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MediaError(f"{file}: JSON settings were expected ({error}); repair the file") from error
    if not isinstance(content, dict):
        raise MediaError(f"{file}: a JSON object was expected, got {type(content).__name__}; repair the file")
    return content


def _read_template(checkpoint: str | Path, revision: str | None) -> str | None:
    raw = find_file(checkpoint, TEMPLATES[0], revision)
    if raw is not None:
        return raw.read_text(encoding="utf-8")
    return _read_json(checkpoint, TEMPLATES[1], revision).get("chat_template")
