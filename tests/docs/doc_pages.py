"""The documents and their fenced blocks."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Block:
    """A fenced block: `language` is the first word after the fence, `words` the others."""

    page: str
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def file(self) -> str | None:
        """The file name the page gives this block (`file=NAME`)."""
        return next((word.removeprefix("file=") for word in self.words if word.startswith("file=")), None)

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Every document, relative to the repository, as text for test ids."""
    top = [path for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md") if (path := ROOT / name).is_file()]
    return [str(path.relative_to(ROOT)) for path in [*top, *sorted((ROOT / "docs").rglob("*.md"))]]


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found, fence, start, info, body = [], "", 0, "", []
    for number, line in enumerate(text(page).splitlines(), start=1):
        opened = re.match(r"\s*(`{3,})(.*)$", line)
        if not fence and opened:
            fence, start, info, body = opened[1], number, opened[2].strip(), []
        elif fence and line.strip() == fence:
            words = info.split()
            found.append(Block(page, start, words[0] if words else "", tuple(words[1:]), "\n".join(body) + "\n"))
            fence = ""
        elif fence:
            body.append(line)
    assert not fence, f"{page}:{start}: the fence is never closed"
    return found


def having(language: str) -> list[str]:
    """Pages with at least one block of a language."""
    return [page for page in pages() if any(block.language == language for block in blocks(page))]


def shell_lines(page: str) -> list[tuple[str, str]]:
    """(where, line) of every command in the page's shell blocks, continuations joined and `&&` taken apart."""
    found = []
    for block in blocks(page):
        if block.language in ("bash", "console", "sh"):
            for line in block.text.replace("\\\n", " ").splitlines():
                found += [(block.where, part.strip()) for part in line.removeprefix("$ ").split("&&") if part.strip()]
    return found


def commands(page: str) -> list[tuple[str, str]]:
    """Those of `vidsieve …` and `tune …`, without their comments."""
    bare = [(where, line.split(" #")[0].strip()) for where, line in shell_lines(page)]
    return [(where, line) for where, line in bare if line.startswith(("vidsieve ", "tune "))]
