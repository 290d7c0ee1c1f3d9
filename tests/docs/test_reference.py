"""The reference is generated, so it cannot say what the code does not."""

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from doc_pages import ROOT, blocks, text

import vidsieve
from vidsieve.framework.hookspecs import STAGE_HOOKS, PluginSpecs, StageSpecs
from vidsieve.framework.registry import Registry


@pytest.fixture(scope="module")
def make_docs() -> Iterator[ModuleType]:
    """scripts/make_docs.py as a module."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import make_docs

        yield make_docs
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def test_generated_pages_are_up_to_date(make_docs: ModuleType) -> None:
    old = [str(path.relative_to(ROOT)) for path in make_docs.stale()]
    assert not old, f"run: python scripts/make_docs.py ({', '.join(old)})"


def test_check_sees_a_page_that_rots(make_docs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = dict(make_docs.PAGES) | {"errors.md": ("Errors", lambda: "something else")}
    monkeypatch.setattr(make_docs, "PAGES", pages)
    assert make_docs.REFERENCE / "errors.md" in make_docs.stale()


def _hooks() -> list[str]:
    return [*STAGE_HOOKS, *(name for name in vars(PluginSpecs) if name.startswith("register_"))]


def test_no_hook_is_left_out_of_the_list() -> None:
    assert {name for name in vars(StageSpecs) if not name.startswith("_")} == set(STAGE_HOOKS)


@pytest.mark.parametrize("hook", _hooks())
def test_every_hook_has_a_heading_its_signature_and_an_example(hook: str) -> None:
    page = text("docs/reference/hooks.md")
    section = page.split(f"\n### {hook}\n")[1].split("\n### ")[0]
    assert f"```text\n{hook}(" in section
    assert "```python\n" in section
    assert f"def {hook}(" in section.split("```python\n")[1]
    assert " ".join((getattr(StageSpecs, hook, None) or getattr(PluginSpecs, hook)).__doc__.split()) in section


@pytest.mark.parametrize("example", sorted((ROOT / "docs" / "examples" / "hooks").glob("*.py")), ids=lambda p: p.stem)
def test_every_example_is_a_lone_plugin_file(example, tmp_path) -> None:
    registry = Registry(installed=False)
    copy = tmp_path / example.name
    copy.write_text(example.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "mine.yaml").write_text("format: 1\nname: mine\nstages: []\n")
    registry.add_file(copy)
    found = {"register_policies": registry.policies, "register_models": registry.models}.get(
        example.stem, registry.stages
    )
    assert found
    if example.stem in STAGE_HOOKS:
        assert all(example.stem in stage.hooks() for stage in found.values())


def test_all_names_are_exported_and_documented() -> None:
    headings = {line.removeprefix("## ") for line in text("docs/reference/python.md").splitlines() if line[:3] == "## "}
    names = {name for name in vidsieve.__all__ if not name.startswith("__")}
    assert headings == names
    for name in vidsieve.__all__:
        assert getattr(vidsieve, name) is not None
    lazy = vidsieve._HOME  # what the package can give, whether or not it says so
    assert names == set(lazy)


def test_published_policies_stand_in_the_reference_as_they_are() -> None:
    shown = {block.text for block in blocks("docs/reference/policies.md") if block.language == "yaml"}
    files = {path.read_text(encoding="utf-8") for path in (ROOT / "vidsieve/policies/published").glob("*.yaml")}
    assert shown == {file.rstrip() + "\n" for file in files}
