"""Make code blocks readable on the site, and refuse what it would show raw; `mkdocs build` calls this.

In the documents `file=NAME`, `wrong` and `no-run` tell the tests what to do with a block (see tests/docs).
MkDocs knows no such words: here they become the block's title.
"""

import logging
import re
from typing import Any

OPENING = re.compile(r"^(?P<fence> *`{3,})(?P<language>[\w+-]+) +(?P<words>[^`{\n]+)$", re.MULTILINE)
TITLES = {"wrong": "wrong", "no-run": ""}
RAW = re.compile(r"<p>(?:[^<]|<(?!/p>))*?(?:^(?:- |\d\. |\| )|```)", re.MULTILINE)
"""A fence, or a list or table without an empty line before it: GitHub makes a list of that and MkDocs a paragraph."""

log = logging.getLogger("mkdocs.hooks.site_blocks")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Rewrite the first line of every block that has such words."""
    return OPENING.sub(_titled, markdown)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Warn of Markdown that is still Markdown; with --strict a warning ends the build."""
    found = RAW.search(html)
    if found is not None:
        log.warning("Doc file %r: shown as it is written: %s", page.file.src_uri, found[0][-80:])
    return html


def _titled(opening: re.Match[str]) -> str:
    titles = [TITLES.get(word, word.removeprefix("file=")) for word in opening["words"].split()]
    title = " ".join(filter(None, titles))
    return f"{opening['fence']}{opening['language']}" + (f' title="{title}"' if title else "")
