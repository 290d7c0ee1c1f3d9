"""What pluggy would silently ignore is refused when the class is made."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import pydantic
import pytest
from pydantic import ConfigDict, Field

from vidsieve.framework.errors import PluginError
from vidsieve.framework.hookspecs import STAGE_HOOKS, hookimpl
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage, tunable


def make(body: dict[str, Any], bases: tuple[type, ...] = (Stage,), **annotations: Any) -> type:
    """A class as its source would have made it."""
    return type(Stage)("Made", bases, {**body, "__annotations__": annotations, "__module__": __name__})


def plain(self: Any, tokens: Any) -> None: ...


@pytest.mark.parametrize("hook", STAGE_HOOKS)
def test_an_unmarked_method_named_like_a_hook_is_refused(hook: str) -> None:
    with pytest.raises(PluginError, match=f"{hook} is not marked; put @hookimpl above it"):
        make({hook: plain})


def test_an_unmarked_hook_of_a_mixin_is_refused_too() -> None:
    class Mixin:
        def score_tokens(self, tokens: VideoTokens) -> None: ...

    with pytest.raises(PluginError, match="score_tokens is not marked"):

        class Mixed(Mixin, Stage):
            pass


def test_an_override_that_forgets_the_mark_is_refused() -> None:
    class Parent(Stage):
        @hookimpl
        def score_tokens(self, tokens: VideoTokens) -> None: ...

    with pytest.raises(PluginError, match="score_tokens is not marked"):

        class Child(Parent):
            def score_tokens(self, tokens: VideoTokens) -> None: ...


@pytest.mark.parametrize(
    "attribute",
    [property(plain), classmethod(plain), functools.partial(plain), 3, None, "text", int],
    ids=["property", "classmethod", "partial", "number", "none", "text", "class"],
)
def test_an_attribute_named_like_a_hook_must_be_a_method(attribute: Any) -> None:
    # pydantic itself refuses bare values, with a sentence of its own
    with pytest.raises((PluginError, pydantic.errors.PydanticUserError), match="select_tokens"):
        make({"select_tokens": attribute})


def test_a_constant_named_like_a_hook_is_refused() -> None:
    with pytest.raises(PluginError, match="select_tokens"):
        make({"select_tokens": 3}, select_tokens=ClassVar[int])


@pytest.mark.parametrize("option", ["wrapper", "hookwrapper", "tryfirst", "trylast", "optionalhook"])
def test_hook_options_that_would_do_nothing_are_refused(option: str) -> None:
    def generator(self: Any, tokens: Any) -> Any:
        yield

    method = hookimpl(**{option: True})(generator)
    with pytest.raises(PluginError, match=rf"@hookimpl\({option}="):
        make({"score_tokens": method})


@pytest.mark.parametrize("name", ["score_tokens", "mine"])
def test_a_hook_under_another_name_is_refused(name: str) -> None:
    with pytest.raises(PluginError, match=name):
        make({name: hookimpl(specname="score_tokens")(plain)})


def test_a_mark_on_a_misspelt_hook_offers_the_right_one() -> None:
    with pytest.raises(PluginError, match="Did you mean 'score_tokens'"):
        make({"score_token": hookimpl(plain)})


@pytest.mark.parametrize(
    ("hook", "argument"), [("score_tokens", "step"), ("prune_kv", "tokens"), ("reduce_frames", "pixels")]
)
def test_a_hook_asking_for_what_it_is_not_given_is_refused(hook: str, argument: str) -> None:
    scope: dict[str, Callable[..., None]] = {}
    exec(f"def method(self, {argument}): ...", scope)
    with pytest.raises(PluginError, match=f"asks for the argument '{argument}'; it is given"):
        make({hook: hookimpl(scope["method"])})


RESERVED = (
    "use",
    "as",
    "needs",
    "wants",
    "solves",
    "reads",
    "reads_if_made",
    "data_dependent",
    "optional",
    "layers",
    "hooks",
)


@pytest.mark.filterwarnings("ignore:Field name")
@pytest.mark.parametrize("name", RESERVED)
def test_a_setting_may_not_have_a_reserved_name(name: str) -> None:
    with pytest.raises(PluginError, match=f"setting '{name}' is a reserved word"):
        make({name: 1}, **{name: int})


@pytest.mark.filterwarnings("ignore:Field name")
@pytest.mark.parametrize("hook", STAGE_HOOKS)
def test_a_setting_may_not_have_the_name_of_a_hook(hook: str) -> None:
    with pytest.raises(PluginError, match=f"setting '{hook}' has the name of a hook"):
        make({hook: 1.0}, **{hook: float})


@pytest.mark.parametrize("kind", ["alias", "validation_alias", "serialization_alias"])
@pytest.mark.parametrize("alias", ["use", "as", "score_tokens", "other"])
def test_a_setting_may_not_pass_under_another_name(kind: str, alias: str) -> None:
    with pytest.raises(PluginError, match="has an alias"):
        make({"power": Field(1.0, **{kind: alias})}, power=float)


@pytest.mark.parametrize(
    "config",
    [
        ConfigDict(frozen=False),
        ConfigDict(extra="allow"),
        ConfigDict(strict=False),
        ConfigDict(allow_inf_nan=True),
        ConfigDict(validate_default=False),
    ],
)
def test_a_subclass_cannot_loosen_what_a_setting_is(config: ConfigDict) -> None:
    with pytest.raises(PluginError, match="model_config changes"):
        make({"model_config": config})


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"low": 0.0}, "give both ends"),
        ({"high": 1.0}, "give both ends"),
        ({"low": 1.0, "high": 1.0}, "low must be below high"),
        ({"low": 2.0, "high": 1.0}, "low must be below high"),
        ({"low": 0.0, "high": 1.0, "log": True}, "above 0"),
        ({"log": True}, "above 0"),
    ],
)
def test_a_range_nobody_can_search_is_refused(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(PluginError, match=word):
        tunable(1.0, **arguments)


def test_a_tunable_number_needs_a_range() -> None:
    with pytest.raises(PluginError, match="'power' is a number; tunable needs low= and high="):
        make({"power": tunable(1.0)}, power=float)


@pytest.mark.parametrize("default", [5.0, -0.1, "0.5", float("nan")])
def test_a_default_outside_its_own_declaration_is_refused(default: Any) -> None:
    with pytest.raises(PluginError, match="the default of 'power'"):
        make({"power": tunable(default, low=0.0, high=1.0)}, power=float)


def test_solves_must_name_a_setting() -> None:
    with pytest.raises(PluginError, match=r"solves = 'drop', which is no setting. Did you mean 'drop_ratio'"):
        make({"solves": "drop", "drop_ratio": tunable(None, low=0.0, high=1.0)}, drop_ratio=float | None)


@pytest.mark.parametrize("setting", [tunable(0.5, low=0.0, high=1.0), Field(None)], ids=["always fixed", "no range"])
def test_what_solves_names_must_be_free_and_have_a_range(setting: Any) -> None:
    with pytest.raises(PluginError, match="'drop_ratio' decides the count"):
        make({"solves": "drop_ratio", "drop_ratio": setting}, drop_ratio=float | None)


def test_a_layer_stage_must_say_where_it_acts() -> None:
    stage = make({"prune_layer": hookimpl(plain)})()
    with pytest.raises(PluginError, match="define layers"):
        stage.layers(28)
