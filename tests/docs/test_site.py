"""The site has every page, and shows the blocks of the documents as blocks; `.ci/run` builds it, warnings as errors."""

import importlib.util
import logging
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from doc_pages import ROOT, pages, text

DOCS = [page.removeprefix("docs/") for page in pages() if page.startswith("docs/")]


class _Config(yaml.SafeLoader):
    """Reads mkdocs.yml without carrying its tags out."""


_Config.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def _paths(entries: Any) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        else:
            for value in entry.values():
                yield from [value] if isinstance(value, str) else _paths(value)


CONFIG = yaml.load(text("mkdocs.yml"), Loader=_Config)
NAV = list(_paths(CONFIG["nav"]))


@pytest.fixture(scope="module")
def site_blocks() -> ModuleType:
    """scripts/site_blocks.py as a module."""
    spec = importlib.util.spec_from_file_location("site_blocks", ROOT / "scripts" / "site_blocks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", DOCS)
def test_every_page_is_in_the_navigation_and_the_index(page: str) -> None:
    assert page in NAV, f"mkdocs.yml: the page is missing; add under `nav`, in its part:\n      - {page}"
    generated = page.startswith("reference/") or page == "README.md"
    assert generated or f"]({page})" in text("docs/README.md"), f"docs/README.md: no link to {page}"


def test_the_navigation_names_each_page_once_and_no_other() -> None:
    assert sorted(NAV) == sorted(DOCS)


def test_faults_of_links_end_the_build() -> None:
    links, nav = CONFIG["validation"]["links"], CONFIG["validation"]["nav"]
    assert {links[kind] for kind in ("not_found", "anchors", "absolute_links", "unrecognized_links")} == {"warn"}
    assert {nav[kind] for kind in ("omitted_files", "not_found", "absolute_links")} == {"warn"}
    assert "mkdocs build --strict" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_words_after_a_language_become_a_title(site_blocks: ModuleType) -> None:
    page = "```python wrong\na\n```\n\n```yaml file=x.yaml\nb\n```\n\n```bash\nc\n```\n\n```python no-run\nd\n```\n"
    shown = site_blocks.on_page_markdown(page).splitlines()
    assert [line for line in shown if line.startswith("```") and line != "```"] == [
        '```python title="wrong"',
        '```yaml title="x.yaml"',
        "```bash",
        "```python",
    ]


@pytest.mark.parametrize(
    ("html", "warned"),
    [
        ("<p>before</p><ul><li>a</li></ul>", False),
        ("<p>five\nand 3 - 4</p>", False),
        ("<p>before:\n- a\n- b</p>", True),
        ("<p>before:\n1. a</p>", True),
        ("<p>a <code>b</code>\n| c | d |</p>", True),
        ("<p>```python odd words</p>", True),
    ],
)
def test_markdown_shown_raw_is_a_warning(
    html: str, warned: bool, site_blocks: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))
    with caplog.at_level(logging.WARNING, logger="mkdocs.hooks.site_blocks"):
        assert site_blocks.on_page_content(html, page) == html
    assert bool(caplog.records) == warned
