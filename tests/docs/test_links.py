"""Links inside the documents lead somewhere, also to headings."""

import re

import pytest
from doc_pages import ROOT, pages, text


def _anchor(heading: str) -> str:
    """The anchor that Markdown viewers make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower().strip()).replace(" ", "-")


def _prose(page: str) -> str:
    return re.sub(r"(?ms)^```.*?^```", "", text(page))


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?ms)^```.*?^```", "", file.read_text(encoding="utf-8")))
            assert anchor in {_anchor(heading) for heading in headings}, f"{page}: {target}"


def test_every_document_is_reached_from_the_index() -> None:
    reached: set[str] = set()
    todo = ["README.md"]
    while todo:
        page = todo.pop()
        if page in reached or page not in pages():
            continue
        reached.add(page)
        for target in re.findall(r"\]\(([^)\s#]+\.md)", _prose(page)):
            if not target.startswith("http"):
                todo.append(str(((ROOT / page).parent / target).resolve().relative_to(ROOT)))
    assert set(pages()) <= reached
