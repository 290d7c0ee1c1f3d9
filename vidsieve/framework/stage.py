"""`Stage`, the base of every plugin: a frozen record of settings, with one or more stage hooks."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from vidsieve.framework.errors import PluginError
from vidsieve.framework.hookspecs import PROJECT, REDUCING_HOOKS, STAGE_HOOKS
from vidsieve.framework.records import VideoShape

RESERVED = ("use", "as", "needs", "wants", "solves", "reads", "layers", "attainable")
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
    """
    extra: dict[str, Any] = {"tunable": True, "low": low, "high": high, "log": log}
    return Field(default, ge=low, le=high, description=help or None, json_schema_extra=extra)


class Stage(BaseModel):
    """One step of a policy. Subclass it, declare settings as fields, mark hooks with `@hookimpl`.

    Class attributes a subclass may set:
      reads           what must have been made by an earlier stage: "budget", "scores", "segments"
      reads_if_made   what is used when it is there
      solves          the setting that decides how many tokens stay; left out on the last reducing stage, the core
                      solves it for the retention ratio asked
      data_dependent  True when the count depends on content, so that keeping everything is no fault
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=False)

    reads: ClassVar[tuple[str, ...]] = ()
    reads_if_made: ClassVar[tuple[str, ...]] = ()
    solves: ClassVar[str | None] = None
    data_dependent: ClassVar[bool] = False

    def needs(self) -> frozenset[str]:
        """Inputs or signals this stage cannot do without; it may depend on settings."""
        return frozenset()

    def wants(self) -> frozenset[str]:
        """Inputs or signals this stage uses when they are there."""
        return frozenset()

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Prune points of a layer or KV stage: *after* these zero-based decoder layers."""
        raise PluginError(
            f"stage {type(self).__name__}: a stage with prune_layer or prune_kv must say after which layers it acts; "
            f"define layers(num_layers) (this model has {num_layers})."
        )

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        """Lowest and highest share of the offered tokens this stage can leave, with the settings it has.

        With its counting setting fixed both are equal. The default: a stage that reduces can leave from one token to
        all; others leave all.
        """
        if not any(name in REDUCING_HOOKS for name in self.hooks()) or shape.total == 0:
            return (1.0, 1.0)
        return (1.0 / shape.total, 1.0)

    @classmethod
    def hooks(cls) -> tuple[str, ...]:
        """Names of the stage hooks this class implements, in house order."""
        return tuple(name for name in STAGE_HOOKS if getattr(getattr(cls, name, None), f"{PROJECT}_impl", None))

    @classmethod
    def writes(cls) -> tuple[str, ...]:
        """What this stage leaves for later ones: "segments", "budget", "scores"."""
        return tuple(WRITES[name] for name in cls.hooks() if name in WRITES)

    @classmethod
    def settings(cls) -> dict[str, FieldInfo]:
        """The declared settings by name."""
        return dict(cls.model_fields)

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


def _refuse_what_pluggy_would_ignore(cls: type[Stage]) -> None:
    """Raise PluginError for attributes that look like hooks but would never be called, and for reserved fields."""
    where = f"stage {cls.__name__}"
    for name in (*cls.model_fields, *cls.__annotations__):
        if name in STAGE_HOOKS:
            raise PluginError(f"{where}: setting {name!r} has the name of a hook; rename the setting.")
    for name in cls.model_fields:
        if name in RESERVED:
            raise PluginError(f"{where}: setting {name!r} is a reserved word; choose another name.")
    for name in STAGE_HOOKS:
        attribute = cls.__dict__.get(name)
        if attribute is None:
            continue
        if not callable(attribute) or isinstance(attribute, type):
            raise PluginError(f"{where}: {name} must be a method marked with @hookimpl, got {attribute!r}.")
        options = getattr(attribute, f"{PROJECT}_impl", None)
        if options is None:
            raise PluginError(f"{where}: {name} is not marked; put @hookimpl above it or it is never called.")
        _refuse_hook_options(where, name, options)


def _refuse_hook_options(where: str, name: str, options: dict[str, Any]) -> None:
    """A stage's hook is called alone, so ordering and wrapping options would do nothing."""
    for option in ("wrapper", "hookwrapper", "tryfirst", "trylast", "specname", "optionalhook"):
        if options.get(option):
            raise PluginError(f"{where}: @hookimpl({option}=...) on {name} would do nothing; use a bare @hookimpl.")
