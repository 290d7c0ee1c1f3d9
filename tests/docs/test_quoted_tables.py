"""Measured tables in the documents are quoted from a file that a committed script wrote.

A quoted table stands between `<!-- quoted from FILE -->` and `<!-- end of quote -->`. Tables with percentages anywhere
else are refused, so that no figure stands in the documents that nobody can print again.
"""

import re

import pytest
from doc_pages import ROOT, pages, text

QUOTE = re.compile(r"<!-- quoted from (\S+) -->\n(.*?)<!-- end of quote -->", re.DOTALL)


@pytest.mark.parametrize("page", pages())
def test_quoted_tables_stand_in_the_file_they_name(page: str) -> None:
    for source, quoted in QUOTE.findall(text(page)):
        written = (ROOT / source).read_text(encoding="utf-8").splitlines()
        lines = [line for line in quoted.splitlines() if line.strip()]
        assert lines, f"{page}: nothing is quoted from {source}"
        for line in lines:
            assert line in written, f"{page}: not in {source}: {line}"


@pytest.mark.parametrize("page", [page for page in pages() if not page.startswith("docs/reference/")])
def test_measured_tables_are_quoted(page: str) -> None:
    rest = QUOTE.sub("", text(page))
    rows = [line for line in rest.splitlines() if line.startswith("|") and re.search(r"\d\s?%|\*\*\d", line)]
    assert not rows, f"{page}: {rows[0]}"


def test_the_readme_quotes_a_card() -> None:
    assert [source for source, _ in QUOTE.findall(text("README.md"))], "the README shows no measured table"
