"""Names: what may be registered, and what happens when it may not."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from framework.kit import Best, Norm
from framework.plugins import FEATURE_NORM

from vidsieve.framework.errors import PluginError, UnknownNameError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.registry import Registry
from vidsieve.framework.stage import Stage


@pytest.fixture
def registry() -> Registry:
    return Registry(installed=False)


def plugin(tmp_path: Path, source: str, name: str = "my_stage.py") -> Path:
    file = tmp_path / name
    file.write_text(source)
    return file


def test_a_registry_of_its_own_starts_empty(registry: Registry) -> None:
    assert (registry.stages, registry.policies, registry.models) == ({}, {}, {})


@pytest.mark.parametrize("name", ["a", "top-k", "vidcom2.frame-budget", "a_b", "3d"])
def test_plain_names_are_accepted(registry: Registry, name: str) -> None:
    registry.register(name, Norm)
    assert registry.stages[name] is Norm
    assert registry.origin("stage", name) == "this process"


@pytest.mark.parametrize("name", ["", "Top-K", "a b", "-a", "a-", "a..b", "é", "a/b", "a\n", "a:b"])
def test_other_names_are_refused(registry: Registry, name: str) -> None:
    with pytest.raises(PluginError, match="must be lower case words"):
        registry.register(name, Norm)
    assert registry.stages == {}


@pytest.mark.parametrize("value", [int, Norm(), 3, None])
def test_what_is_no_stage_class_is_refused(registry: Registry, value: object) -> None:
    with pytest.raises(PluginError, match="must be a subclass of Stage, got"):
        registry._add("stage", "mine", value, "a test")


def test_a_name_is_given_once(registry: Registry) -> None:
    registry.register("mine", Norm)
    with pytest.raises(PluginError, match="stage 'mine' is already registered by this process; choose another"):
        registry.register("mine", Best)
    assert registry.stages["mine"] is Norm


def test_a_notebook_cell_may_run_twice(registry: Registry) -> None:
    def cell() -> type[Stage]:
        class Mine(Stage):
            pass

        return Mine

    registry.register("mine", cell())
    again = cell()
    registry.register("mine", again)
    assert registry.stages["mine"] is again


def test_a_policy_is_registered_by_its_path(registry: Registry, tmp_path: Path) -> None:
    registry.register("mine", tmp_path / "mine.yaml")
    registry.register("mine", tmp_path / "." / "mine.yaml")
    with pytest.raises(PluginError, match="policy 'mine' is already registered"):
        registry.register("mine", tmp_path / "other.yaml")


def test_an_unknown_name_offers_the_nearest_and_lists_the_rest(registry: Registry) -> None:
    registry.register("alpha-beta", Norm)
    registry.register("gamma", Best)
    with pytest.raises(
        UnknownNameError, match=r"here: no stage named 'alpha-bet'. Did you mean 'alpha-beta'"
    ) as caught:
        registry.find("stage", "alpha-bet", "here")
    assert "Known: alpha-beta, gamma" in str(caught.value)
    assert caught.value.exit_code == 2
    with pytest.raises(UnknownNameError, match="None is registered"):
        registry.find("model", "alpha", "here")


def test_a_lone_file_is_usable_at_once(registry: Registry, tmp_path: Path) -> None:
    file = plugin(tmp_path, FEATURE_NORM)
    registry.add_file(file)
    registry.add_file(str(file))
    assert list(registry.stages) == ["feature-norm"]
    assert registry.origin("stage", "feature-norm") == str(file)


def test_a_symlink_to_a_plugin_is_that_plugin(registry: Registry, tmp_path: Path) -> None:
    file = plugin(tmp_path, FEATURE_NORM)
    link = tmp_path / "link.py"
    link.symlink_to(file)
    registry.add_file(file)
    registry.add_file(link)
    assert list(registry.stages) == ["feature-norm"]


@pytest.mark.parametrize(
    ("source", "line", "words"),
    [
        ("import vidsieve\nimport absent_module_xyz\n", 2, "failed to import: ModuleNotFoundError: No module"),
        ("x = 1\ny = (\n", 2, "failed to import: SyntaxError"),
        ("def f():\n    return 1 / 0\n\nf()\n", 2, "failed to import: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit('bye')\n", 2, "failed to import: SystemExit: bye"),
        ("from vidsieve import Stage\nclass S(Stage):\n    def score_tokens(self): ...\n", 2, "is not marked"),
        (
            "from vidsieve import hookimpl\n@hookimpl\ndef register_stages(register):\n    register('x', 3)\n",
            None,
            "stage 'x' must be a subclass of Stage, got 3",
        ),
        (
            "from vidsieve import hookimpl\n@hookimpl\ndef register_stages(register):\n    1 / 0\n",
            4,
            "failed to register: ZeroDivisionError",
        ),
    ],
)
def test_a_file_that_fails_says_where(
    registry: Registry, tmp_path: Path, source: str, line: int | None, words: str
) -> None:
    file = plugin(tmp_path, source)
    with pytest.raises(PluginError) as caught:
        registry.add_file(file)
    place = f"{file}:{line}: " if line else f"{file}: "
    assert str(caught.value).startswith(f"plugin {place}"), caught.value
    assert words in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert registry.stages == {}


def test_a_mended_file_can_be_loaded_again(registry: Registry, tmp_path: Path) -> None:
    file = plugin(tmp_path, FEATURE_NORM.replace('"feature-norm"', '"Feature Norm"'))
    with pytest.raises(PluginError, match="must be lower case"):
        registry.add_file(file)
    file.write_text(FEATURE_NORM + "\n# mended\n")
    registry.add_file(file)
    assert list(registry.stages) == ["feature-norm"]


def test_a_broken_file_leaves_no_half_of_itself(registry: Registry, tmp_path: Path) -> None:
    source = FEATURE_NORM + '    register("top k", FeatureNorm)\n'
    with pytest.raises(PluginError, match="top k"):
        registry.add_file(plugin(tmp_path, source))
    assert registry.stages == {}


def test_a_syntax_error_in_another_file_is_not_given_this_files_line(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "other_broken_xyz.py").write_text("\n\n\n\n\n\nx = (\n")
    file = plugin(tmp_path, "import other_broken_xyz\n")
    with pytest.raises(PluginError, match=r"my_stage\.py:1: failed to import: SyntaxError"):
        registry.add_file(file)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = 1\n", "registers nothing"),
        ("def register_stages(register): ...\n", "registers nothing.*marked with @hookimpl"),
        (
            "from vidsieve import hookimpl\n@hookimpl\ndef register_stages(registrar): ...\n",
            "registrar.*can not be found in the hookspec",
        ),
        (
            "from vidsieve import hookimpl\n@hookimpl\ndef register_stage(register): ...\n",
            "unknown hook 'register_stage'",
        ),
    ],
)
def test_a_file_that_would_do_nothing_is_refused(registry: Registry, tmp_path: Path, source: str, words: str) -> None:
    with pytest.raises(PluginError, match=words):
        registry.add_file(plugin(tmp_path, source))


@pytest.mark.parametrize("name", ["absent.py", "."])
def test_a_file_that_is_not_there_is_told(registry: Registry, tmp_path: Path, name: str) -> None:
    with pytest.raises(PluginError, match="no such file"):
        registry.add_file(tmp_path / name)


def test_a_file_that_is_not_python_is_told(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"must end in \.py"):
        registry.add_file(plugin(tmp_path, FEATURE_NORM, "my_stage.txt"))


def test_a_module_from_python_is_registered_once(registry: Registry) -> None:
    module = ModuleType("a_plugin_of_this_test")

    @hookimpl
    def register_stages(register):  # type: ignore[no-untyped-def]
        register("mine", Norm)

    module.register_stages = register_stages  # type: ignore[attr-defined]
    registry.add_module(module)
    registry.add_module(module)
    assert registry.stages == {"mine": Norm}


def test_loading_a_file_leaves_the_import_path_alone(registry: Registry, tmp_path: Path) -> None:
    before = list(sys.path)
    registry.add_file(plugin(tmp_path, FEATURE_NORM))
    assert sys.path == before
