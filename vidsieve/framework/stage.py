"""`Stage`, the base of every plugin: a frozen record of settings, with one or more stage hooks."""

import inspect
import json
from collections.abc import Callable, Mapping
from functools import lru_cache, partial, wraps
from typing import Annotated, Any, ClassVar, TypeVar, get_args
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from vidsieve.framework.errors import PluginError, suggest
from vidsieve.framework.hookspecs import PROJECT, REDUCING_HOOKS, STAGE_HOOKS, StageSpecs
from vidsieve.framework.records import VideoShape

RESERVED = (
    *("use", "as", "needs", "wants", "solves", "reads", "reads_if_made", "data_dependent", "optional"),
    *("layers", "leaves", "attainable", "count_from_shape", "parks", "hooks", "writes", "settings", "build"),
)
WRITES = {"segment_frames": "segments", "budget_frames": "budget", "score_tokens": "scores"}


def tunable(
    default: Any = PydanticUndefined,
    *,
    low: float | None = None,
    high: float | None = None,
    log: bool = False,
    help: str = "",
) -> Any:
    """Declare a setting once: its default, its bounds, and the range the tuner searches.

    `low` and `high` are inclusive and are enforced in policy files too; `log` searches on a logarithmic scale. A
    setting with a `Literal` or `bool` type needs no bounds. `help` is shown by `vidsieve show`.

    Raises:
        PluginError: one bound without the other, bounds in the wrong order, a logarithm of what is not positive.
    """
    if (low is None) != (high is None):
        raise PluginError(f"tunable(low={low}, high={high}): give both ends of the range, or none.")
    if low is not None and high is not None and not low < high:
        raise PluginError(f"tunable(low={low}, high={high}): low must be below high.")
    if log and (low is None or low <= 0):
        raise PluginError(f"tunable(low={low}, log=True): a logarithmic scale needs a range above 0.")
    extra: dict[str, Any] = {"tunable": True, "low": low, "high": high, "log": log}
    return Field(default, ge=low, le=high, description=help or None, json_schema_extra=extra)


Function = TypeVar("Function", bound=Callable[..., Any])


def cached_on_owner(maxsize: int) -> Callable[[Function], Function]:
    """Cache a function of a stage or a composition, and further hashable arguments, for as long as its owner lives.

    A cache of the module, keyed by objects that are equal to themselves alone, would keep the last `maxsize` of them
    alive. Here results are kept on the first argument itself, the last `maxsize` of them; copies begin without.
    """

    def decorate(function: Function) -> Function:
        @wraps(function)
        def cached(owner: Any, *arguments: Any) -> Any:
            kept = getattr(owner, "_cached", None)
            if kept is None:
                kept = {}
                object.__setattr__(owner, "_cached", kept)  # owners are frozen
            found = kept.get(function)
            if found is None:
                found = kept.setdefault(function, lru_cache(maxsize)(partial(function, owner)))
            return found(*arguments)

        return cached  # type: ignore[return-value]

    return decorate


class Stage(BaseModel):
    """One step of a policy. Subclass it, declare settings as fields, mark hooks with `@hookimpl`.

    Class attributes a subclass may set:
      reads           what must have been made by an earlier stage: "budget", "scores", "segments"
      reads_if_made   what is used when it is there
      solves          the setting that decides how many tokens stay; left out on the last reducing stage, the core
                      solves it for the retention ratio asked
      data_dependent  True when the count depends on content, so that keeping everything is no fault
      optional        True when a policy still makes sense without this stage, so that a search may switch it off
    """

    __slots__ = ("_cached",)  # no field: copies and documents go without it

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)

    reads: ClassVar[tuple[str, ...]] = ()
    reads_if_made: ClassVar[tuple[str, ...]] = ()
    solves: ClassVar[str | None] = None
    data_dependent: ClassVar[bool] = False
    optional: ClassVar[bool] = False

    def needs(self) -> frozenset[str]:
        """Inputs or signals this stage cannot do without; it may depend on settings."""
        return frozenset()

    def wants(self) -> frozenset[str]:
        """Inputs or signals this stage uses when they are there."""
        return frozenset()

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Prune points of a layer or KV stage: *after* these zero-based decoder layers; of evict_kv, the layers cut."""
        raise PluginError(
            f"stage {type(self).__name__}: a stage with prune_layer, evict_kv or prune_kv must say at which layers it "
            f"acts; define layers(num_layers) (this model has {num_layers})."
        )

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        """Lowest and highest share of the offered tokens this stage can leave, with the settings it has.

        With its counting setting fixed both are equal. The default: a stage that reduces can leave from one token to
        all; others leave all.
        """
        if not any(name in ("reduce_frames", *REDUCING_HOOKS) for name in self.hooks()) or shape.total == 0:
            return (1.0, 1.0)
        return (1.0 / shape.total, 1.0)

    def leaves(self, offered: int, num_layers: int) -> tuple[int, ...]:
        """How many visual tokens a layer stage leaves after each of its prune points, with the settings it has.

        `offered` came to its first one. Of a stage with evict_kv: how many of `offered` visual entries each of its
        layers keeps. The default: the share `attainable` says, after every one of them.
        """
        share = self.attainable(VideoShape(1, offered, num_layers))[0]
        return (round(share * offered),) * len(self.layers(num_layers))

    def parks(self) -> bool:
        """Whether visual KV entries that a decode step does not read wait in host memory; it may depend on settings.

        Of the stages with prune_kv the last in the decoder is asked. Its `KeepKV.active` is then True in every row
        with visual tokens, because what decode attends from has room for a choice, not for everything.
        """
        return False

    def count_from_shape(self) -> bool:
        """Whether how many tokens it leaves follows from how many it is offered, its settings and its budget alone.

        Content then decides which tokens stay and never how many, not even where all features are equal. A server that
        must know the length of a prompt before it has seen the video can run nothing else.
        """
        return not self.data_dependent

    @classmethod
    def hooks(cls) -> tuple[str, ...]:
        """Names of the stage hooks this class implements, in house order."""
        return _hooks_of(cls)

    @classmethod
    def writes(cls) -> tuple[str, ...]:
        """What this stage leaves for later ones: "segments", "budget", "scores"."""
        return tuple(WRITES[name] for name in cls.hooks() if name in WRITES)

    @classmethod
    def settings(cls) -> dict[str, FieldInfo]:
        """The declared settings by name."""
        return dict(cls.model_fields)

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> "Stage":
        """The stage with these settings, as a policy file would give them: lists for tuples, no number as text.

        Raises:
            pydantic.ValidationError: a setting is unknown, of the wrong type or out of range.
        """
        try:
            document = json.dumps(dict(values))
        except (TypeError, ValueError):  # no plain data: let the declaration say what it wanted
            return cls.model_validate(dict(values))
        return cls.model_validate_json(document)

    # pluggy refuses to register two equal plugins and pydantic would compare and hash by value; the same stage may
    # stand twice in a policy, so identity it is.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        _refuse_what_pluggy_would_ignore(cls)


_HOOKS: WeakKeyDictionary[type[Stage], tuple[str, ...]] = WeakKeyDictionary()


def _hooks_of(cls: type[Stage]) -> tuple[str, ...]:
    if cls not in _HOOKS:
        _HOOKS[cls] = tuple(name for name in STAGE_HOOKS if getattr(getattr(cls, name, None), f"{PROJECT}_impl", None))
    return _HOOKS[cls]


def _refuse_what_pluggy_would_ignore(cls: type[Stage]) -> None:
    """Raise PluginError for attributes that look like hooks but would never be called, and for bad settings."""
    where = f"stage {cls.__name__}"
    for name in (*cls.model_fields, *cls.__annotations__):
        if name in STAGE_HOOKS:
            raise PluginError(f"{where}: setting {name!r} has the name of a hook; rename the setting.")
    for name in STAGE_HOOKS:
        if any(name in base.__dict__ for base in cls.__mro__):
            _refuse_no_hook(where, name, inspect.getattr_static(cls, name), getattr(cls, name, None))
    for name in dir(cls):
        if name not in STAGE_HOOKS and f"{PROJECT}_impl" in getattr(inspect.getattr_static(cls, name), "__dict__", {}):
            raise PluginError(f"{where}: @hookimpl on {name}, but there is no such hook. {suggest(name, STAGE_HOOKS)}")
    for name, info in cls.model_fields.items():
        _refuse_setting(where, name, info)
    _refuse_loose_model(where, cls)
    _refuse_solves(where, cls)


def _refuse_no_hook(where: str, name: str, static: Any, attribute: Any) -> None:
    """A hook is a function, marked, that takes arguments the hook has."""
    if not inspect.isfunction(static):
        raise PluginError(f"{where}: {name} must be a method marked with @hookimpl, got {attribute!r}.")
    options = getattr(attribute, f"{PROJECT}_impl", None)
    if options is None:
        raise PluginError(f"{where}: {name} is not marked; put @hookimpl above it or it is never called.")
    # a stage's hook is called alone, so ordering and wrapping options would do nothing
    for option in ("wrapper", "hookwrapper", "tryfirst", "trylast", "specname", "optionalhook"):
        if options.get(option):
            raise PluginError(f"{where}: @hookimpl({option}=...) on {name} would do nothing; use a bare @hookimpl.")
    offered = [*inspect.signature(getattr(StageSpecs, name)).parameters][1:]
    for asked in [*inspect.signature(static).parameters][1:]:
        if asked not in offered:
            raise PluginError(f"{where}: {name} asks for the argument {asked!r}; it is given {', '.join(offered)}.")


def _refuse_setting(where: str, name: str, info: FieldInfo) -> None:
    """A setting has a free name, no other name beside it, and a default within its own bounds."""
    if name in RESERVED:
        raise PluginError(f"{where}: setting {name!r} is a reserved word; choose another name.")
    if info.alias or info.validation_alias or info.serialization_alias:
        raise PluginError(f"{where}: setting {name!r} has an alias; a setting has one name, its own.")
    extra = info.json_schema_extra
    if isinstance(extra, dict) and extra.get("tunable") and extra.get("low") is None and _is_number(info.annotation):
        raise PluginError(f"{where}: {name!r} is a number; tunable needs low= and high= (or declare it with Field).")
    if info.is_required() or info.default_factory is not None:
        return
    annotation: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    try:
        TypeAdapter(annotation, config=ConfigDict(strict=True)).validate_python(info.default)
    except ValidationError as error:
        fault = error.errors()[0]["msg"]
        raise PluginError(f"{where}: the default of {name!r}, {info.default!r}, is refused: {fault}.") from None


def _is_number(annotation: Any) -> bool:
    return annotation in (int, float) or any(part in (int, float) for part in get_args(annotation))


def _refuse_loose_model(where: str, cls: type[Stage]) -> None:
    """What a subclass may not switch off: settings are read-only, strict, finite and all known."""
    for option, value in Stage.model_config.items():
        if cls.model_config.get(option) != value:
            raise PluginError(f"{where}: model_config changes {option!r}; a stage keeps {option}={value!r}.")


def _refuse_solves(where: str, cls: type[Stage]) -> None:
    """`solves` names a setting that may be left out and has a range to be solved in."""
    name = cls.solves
    if name is None:
        return
    info = cls.model_fields.get(name)
    if info is None:
        raise PluginError(f"{where}: solves = {name!r}, which is no setting. {suggest(name, cls.model_fields)}")
    extra = info.json_schema_extra
    if info.default is not None or not isinstance(extra, dict) or extra.get("low") is None:
        raise PluginError(f"{where}: {name!r} decides the count; declare it with tunable(None, low=..., high=...).")


def setting_faults(error: ValidationError) -> list[tuple[str, str]]:
    """Pydantic's complaints as (setting, sentence) pairs: what was expected and what came."""
    faults = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"][:1]) or "settings"
        came = f", got {item['input']!r}" if item["type"] != "missing" else ""
        faults.append((name, f"{name}: {item['msg'][:1].lower()}{item['msg'][1:]}{came}."))
    return faults
