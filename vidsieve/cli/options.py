"""Options that several verbs share are the fields of a dataclass; `flat` spreads them into a verb's signature."""

import contextlib
import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer

from vidsieve.framework.errors import UsageError
from vidsieve.framework.settings_field import declaration_of, default_of, flag_of
from vidsieve.harness.benchmark.bench_settings import BenchSettings
from vidsieve.harness.setup import Setup
from vidsieve.tuner.request import Metric, TuneRequest

if TYPE_CHECKING:
    from vidsieve.framework.policy.policy import Policy
    from vidsieve.framework.registry import Registry

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="FILE", help="A Python file with stages of your own. Repeatable."),
]
MetricOption = Annotated[Metric, typer.Option("--metric", help="Latency: ttft or e2e.")]


@dataclasses.dataclass(frozen=True)
class FieldsOf:
    """In an annotation of a verb's dict parameter: the settings of this dataclass, not yet made into one."""

    kind: type


SearchSettings = Annotated[dict[str, Any], FieldsOf(TuneRequest)]
"""The settings of a search, by the fields of `TuneRequest`."""

OWN = (
    "devices",
    "in_process",
    "study",
    "fresh",
    "storage",
    "study_name",
    "join",
    "policies",
    "out",
    "force",
    "confirm",
)
"""Settings of the library that are options of one verb."""


def with_flags(text: str) -> str:
    """Write `text` with the settings that the library names, such as `max_drop_points`, as options."""
    return re.sub(r"`(\w+)`", lambda found: FLAGS.get(found[1], found[0]), text)


def _flags() -> dict[str, str]:
    """Map each setting that the library may name to the option that sets it."""
    declared = [
        each
        for kind in (BenchSettings, Setup, TuneRequest)
        for each in dataclasses.fields(kind)
        if declaration_of(each)
    ]
    same = {name: "--" + name.replace("_", "-") for name in (*OWN, "heldout")}
    return {each.name: flag_of(each) for each in declared} | same


FLAGS = _flags()


def option(name: str, panel: str, help: str, metavar: str | None = None) -> Any:
    """Declare an option under a heading of the help page."""
    return typer.Option(name, rich_help_panel=panel, help=help, metavar=metavar)


def flat(verb: Callable[..., None]) -> Callable[..., None]:
    """Replace every parameter of `verb` that stands for the fields of a dataclass by those fields.

    The fields become keyword parameters and are put together again for the call, so each option is declared once.
    """
    hints = get_type_hints(verb, include_extras=True)
    groups = {name: group for name, hint in hints.items() if (group := _group(hint)) is not None}

    @functools.wraps(verb)
    def spread(**given: Any) -> None:
        for name, (kind, whole) in groups.items():
            values = {each.name: given.pop(each.name) for each in _options(kind)}
            given[name] = kind(**values) if whole else values
        verb(**given)

    parameters = [p for each in inspect.signature(verb).parameters.values() for p in _spread(each, hints, groups)]
    # the copies that typer reads: functools.wraps left those of the verb
    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    return spread


def _group(hint: Any) -> tuple[Any, bool] | None:
    """Find the dataclass whose fields a parameter stands for, and whether the verb gets it or a dict of settings."""
    if dataclasses.is_dataclass(hint):
        return hint, True
    if get_origin(hint) is Annotated and isinstance(get_args(hint)[1], FieldsOf):
        return get_args(hint)[1].kind, False
    return None


def _options(kind: Any) -> list[dataclasses.Field[Any]]:
    """List the fields that are options: of a dataclass with declared settings those, of another all."""
    fields = list(dataclasses.fields(kind))
    return [each for each in fields if declaration_of(each) is not None] or fields


def _spread(
    parameter: inspect.Parameter, hints: dict[str, Any], groups: dict[str, tuple[Any, bool]]
) -> list[inspect.Parameter]:
    """List the parameter itself, or one for each option it stands for."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    if parameter.name not in groups:
        return [parameter.replace(annotation=hints[parameter.name], kind=keyword)]
    kind = groups[parameter.name][0]
    types = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(each.name, keyword, default=default_of(each), annotation=_annotation(each, types[each.name]))
        for each in _options(kind)
    ]


def _annotation(declared: dataclasses.Field[Any], hint: Any) -> Any:
    """Annotate the field's type with its option."""
    declaration = declaration_of(declared)
    if declaration is None:
        return hint
    return Annotated[
        hint, option(flag_of(declared), declaration["group"], with_flags(declaration["help"]), declaration["metavar"])
    ]


PANEL = "Policy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyOptions:
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
        """Load the policy. Raises as `load_policy` does, and UsageError for a --set that cannot be read."""
        settings = dict(_setting(text) for text in self.set or ())
        if len(settings) < len(self.set or ()):
            raise UsageError("--set: a setting is given twice; give it once.")
        from vidsieve.framework.composition import check_ratio
        from vidsieve.framework.policy.file import load_policy

        if self.retention is not None:
            check_ratio("--retention", self.retention)
        return load_policy(self.policy, retention_ratio=self.retention, settings=settings, registry=registry)


def _setting(text: str) -> tuple[str, Any]:
    """Read `label.setting=value`, the value as YAML reads it."""
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


_STUDY = "Study"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Where the search is kept and who works on it.

    Raises:
        UsageError: options that exclude each other.
    """

    devices: Annotated[
        str | None,
        option("--devices", _STUDY, "Search on several alike devices at once, such as cuda:0,cuda:1.", "LIST"),
    ] = None
    in_process: Annotated[
        bool,
        option("--in-process", _STUDY, "Evaluate in this process, where a crash ends the search, instead of a child."),
    ] = False
    study: Annotated[
        Path | None,
        option("--study", _STUDY, "The file that keeps the search and resumes it.  (default: beside --out, .study.db)"),
    ] = None
    fresh: Annotated[bool, option("--fresh", _STUDY, "Set an existing study aside and start anew.")] = False
    storage: Annotated[
        str | None,
        option("--storage", _STUDY, "A server that several machines share, instead of a file.", "URL"),
    ] = None
    study_name: Annotated[str, option("--study-name", _STUDY, "The search's name on that server.")] = "vidsieve"
    join: Annotated[
        bool, option("--join", _STUDY, "Add trials to the search on --storage; who started it writes the policy.")
    ] = False

    def __post_init__(self) -> None:
        if self.study is not None and self.storage is not None:
            raise UsageError("--study and --storage: exclude each other; give one of them.")
        if self.devices is not None and self.in_process:
            raise UsageError("--devices and --in-process: exclude each other; each device has a process of its own.")
        if self.storage is not None and "://" not in self.storage:
            raise UsageError(
                f"--storage {self.storage}: must be a URL, such as postgresql://user@host/base; a file goes to --study."
            )
        if self.fresh and self.storage is not None:
            raise UsageError("--fresh: sets a file aside; on --storage choose another --study-name instead.")

    def device_list(self, device: str | None) -> list[str] | None:
        """List the devices of --devices, or None for the usual one. Raises UsageError for a list without sense."""
        if self.devices is None:
            return None
        if device is not None:
            raise UsageError("--device and --devices: exclude each other; give one of them.")
        names = [name.strip() for name in self.devices.split(",") if name.strip()]
        if not names or len(set(names)) < len(names):
            raise UsageError(f"--devices: expected different devices, such as cuda:0,cuda:1, got {self.devices!r}.")
        return names

    def place(self, out: Path) -> Path | str:
        """Say where the study lives."""
        if self.storage is not None:
            return self.storage
        return (self.study or out.with_name(f"{out.stem}.study.db")).expanduser()
