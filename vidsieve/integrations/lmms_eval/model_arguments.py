"""What stands in `--model_args`, checked: names, types, and what contradicts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from vidsieve.framework.errors import UnknownNameError, UsageError, VidsieveError
from vidsieve.harness.setup import Setup

if TYPE_CHECKING:
    from vidsieve.framework.policy.policy import Policy
    from vidsieve.framework.registry import Registry

WHERE = "--model_args"
OURS = {
    "model": "pretrained",
    "frames": "max_num_frames",
    "attn": "attn_implementation",
    "device": "--device",
}
"""Settings of the library that are called otherwise here."""


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """The arguments of the model.

    pretrained: a family, a hub id or a folder.  policy: a published policy or a YAML file; none: the model as it is.
    retention: share of the visual tokens to keep.  max_num_frames, fps: how a video is sampled, as `vidsieve eval`
    does it.  max_pixels: of a frame, at most.  plugin: a Python file with stages of your own.
    picture_fps: several pictures of one question are the frames of a video, so many a second.
    report: a JSON file for what was attained by each request.
    """

    pretrained: str
    policy: str | None = None
    retention: float | None = None
    max_num_frames: int | None = None
    fps: float | None = None
    max_pixels: int | None = None
    batch_size: int | None = None
    device: str | None = None
    dtype: str = "auto"
    attn_implementation: str = "sdpa"
    plugin: str | None = None
    picture_fps: float | None = None
    report: str | None = None

    def __post_init__(self) -> None:
        if self.retention is not None and self.policy is None:
            raise UsageError(f"{WHERE} retention: belongs to a policy; give policy=NAME too, such as policy=vidcom2.")
        for name in ("batch_size", "picture_fps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{WHERE} {name}: must be above 0, got {value}.")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "ModelArguments":
        """Read what lmms-eval made of the arguments: text, int, float or bool by their looks.

        Raises:
            UsageError: an unknown name, a value that is none, or no model.
        """
        kinds = {field.name: str(field.type) for field in fields(cls)}
        for name in given:
            if name not in kinds:
                raise UnknownNameError(WHERE, "argument", name, kinds)
        if given.get("pretrained") in (None, ""):
            raise UsageError(f"{WHERE} pretrained: is missing. Give a family (qwen2-vl), a hub id or a folder.")
        return cls(**{name: _read(name, value, kinds[name]) for name, value in given.items() if value is not None})

    def setup(self, device: str | None = None) -> Setup:
        """Make the settings that the harness runs with. Raises UsageError by the names of the arguments."""
        try:
            return Setup(
                model=self.pretrained,
                device=device or self.device,
                dtype=self.dtype,
                attn=self.attn_implementation,
                plugin=[self.plugin] if self.plugin else None,
                frames=self.max_num_frames,
                fps=self.fps,
                max_pixels=self.max_pixels,
                batch_size=self.batch_size,
                feature_store="off",
            )
        except UsageError as error:
            raise UsageError(f"{WHERE} {in_arguments(error)}") from None

    def load_policy(self, registry: "Registry") -> "Policy":
        """Load the policy. Raises as `load_policy` does."""
        from vidsieve.framework.composition import check_ratio
        from vidsieve.framework.policy.file import load_policy

        assert self.policy is not None
        if self.retention is not None:
            check_ratio(f"{WHERE} retention", self.retention)
        return load_policy(self.policy, retention_ratio=self.retention, registry=registry)


def in_arguments(error: VidsieveError) -> str:
    """Write an error of the library with the names that the arguments have here."""
    return re.sub(r"`(\w+)`", lambda found: OURS.get(found[1], found[1]), str(error))


def _read(name: str, value: Any, kind: str) -> Any:
    """Turn a value into what the argument takes."""
    if "str" in kind:
        return str(value)
    number = value
    if isinstance(value, str):  # batch_size comes as text from the option of that name
        try:
            number = float(value)
        except ValueError:
            number = None
    if isinstance(number, bool) or not isinstance(number, int | float) or ("int" in kind and number != int(number)):
        wanted = "a whole number" if "int" in kind else "a number"
        raise UsageError(f"{WHERE} {name}: must be {wanted}, got {value!r}.")
    return int(number) if "int" in kind else float(number)
