"""The policy that `run` and `eval` are asked for: a name or file, a ratio, settings."""

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from vidsieve.cli.options import option
from vidsieve.framework.errors import UsageError

if TYPE_CHECKING:
    from vidsieve.framework.policy.policy import Policy
    from vidsieve.framework.registry import Registry

PANEL = "Policy"


@dataclass(frozen=True, kw_only=True)
class AskedPolicy:
    """`--policy`, `--retention` and `--set`."""

    policy: Annotated[str, option("--policy", PANEL, "A published policy (see `vidsieve ls`) or a YAML file.")] = (
        "vidcom2"
    )
    retention: Annotated[
        float | None,
        option("--retention", PANEL, "Share of the visual tokens to keep: 0.25 is a quarter."),
    ] = None
    set: Annotated[
        list[str] | None,
        option("--set", PANEL, "Another setting. Repeatable.", "LABEL.SETTING=VALUE"),
    ] = None

    def load(self, registry: "Registry") -> "Policy":
        """The policy. Raises as `load_policy` does, and UsageError for a --set that cannot be read."""
        settings = dict(_setting(text) for text in self.set or ())
        if len(settings) < len(self.set or ()):
            raise UsageError("--set: a setting is given twice; give it once.")
        from vidsieve.framework.policy.composition import check_ratio
        from vidsieve.framework.policy.file import load_policy

        if self.retention is not None:
            check_ratio("--retention", self.retention)
        return load_policy(self.policy, retention_ratio=self.retention, settings=settings, registry=registry)


def _setting(text: str) -> tuple[str, Any]:
    """`label.setting=value`, the value read as YAML reads it."""
    name, equals, value = text.partition("=")
    addressed = "." in name.strip(". ") or name.strip() == "positions"
    if not equals or not addressed or not value.strip():
        raise UsageError(f"--set {text}: must be LABEL.SETTING=VALUE, such as dycoke.temporal-merge.drop_ratio=0.5.")
    import yaml

    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UsageError(f"--set {text}: the value {value!r} cannot be read.") from None
    if isinstance(read, str):
        with contextlib.suppress(ValueError):
            read = float(read)  # YAML takes 1e-3 for text; on a command line a number is meant
    return name.strip(), read
