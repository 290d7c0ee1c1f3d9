"""Code in the documents runs, policies in them load, and what they call wrong is refused with the words they quote.

A page's Python blocks run in order in one namespace, in an empty folder. `model` and `inputs` are there: a Qwen2-VL
with random weights and one video; `checkpoint` and `clip`: a trained model's folder and a video file. Words after the
language mean: `file=NAME` writes the block to that file (a plugin file is loaded too); `wrong` expects a
VidsieveError, whose message holds every line of the `text` block that follows; `no-run` is not run.
"""

import json
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from doc_pages import ROOT, Block, blocks, having, pages, text

import vidsieve
import vidsieve.testing
from vidsieve.framework.errors import VidsieveError
from vidsieve.framework.policy.file import read_policy
from vidsieve.framework.registry import Registry
from vidsieve.harness.data.user_data import KEYS
from vidsieve.tuner.space.knobs import knobs_of, retention_window

ALLOWED_WORDS = ("wrong", "no-run")
NO_RUN_MOST = 3
"""So few blocks may stay untried, in all documents together."""


class _Namespace(dict):
    """Makes what a block may use when one first asks for it."""

    def __missing__(self, name: str) -> Any:
        if name not in ("model", "inputs", "checkpoint", "clip"):
            raise KeyError(name)
        from doc_model import bundled_checkpoint, bundled_clip, tiny_model_and_inputs

        if name in ("model", "inputs"):
            self["model"], self["inputs"] = tiny_model_and_inputs()
        else:
            self[name] = bundled_checkpoint() if name == "checkpoint" else bundled_clip()
        return self[name]


def _run(block: Block, namespace: dict[str, Any], registry: Registry) -> None:
    if block.file:
        Path(block.file).parent.mkdir(parents=True, exist_ok=True)
        Path(block.file).write_text(block.text, encoding="utf-8")
        if block.language == "python" and "def register_" in block.text:
            registry.add_file(block.file)
    elif block.language == "python":
        # blank lines in front, so that a traceback shows the line of the page
        code = compile("\n" * block.line + block.text, block.page, "exec")
        exec(code, namespace)
    if block.language == "yaml":
        policy = read_policy(block.text, block.where, registry)
        knobs_of(policy), retention_window(policy)  # they refuse a `search:` section that does not fit


def _refused(block: Block, after: Block | None, namespace: dict[str, Any], registry: Registry) -> None:
    with pytest.raises(VidsieveError) as caught:
        _run(block, namespace, registry)
    said = " ".join(str(caught.value).split())
    if after is not None and after.language == "text":
        for line in after.text.splitlines():
            assert " ".join(line.split()) in said, f"{after.where}: the message is now: {said}"


GENERATED = "docs/reference/"
IMPORT = re.compile(r"^\s*(?:from|import) (vidsieve[\w.]*)", re.MULTILINE)
SHOWN = {block.where: block.text for page in pages() for block in blocks(page) if block.language == "python"}
SHOWN |= {str(file.relative_to(ROOT)): file.read_text() for file in (ROOT / "docs" / "examples").rglob("*.py")}


def test_documents_import_from_the_package_itself_or_its_test_kit() -> None:
    found = {where: set(IMPORT.findall(shown)) - {"vidsieve", "vidsieve.testing"} for where, shown in SHOWN.items()}
    assert not {where: homes for where, homes in found.items() if homes and not where.startswith(GENERATED)}


@pytest.mark.parametrize("module", [vidsieve, vidsieve.testing])
def test_every_public_name_is_there(module: ModuleType) -> None:
    assert all(getattr(module, name) is not None for name in module.__all__)


@pytest.mark.parametrize("page", sorted({*having("python"), *having("yaml")}))
def test_blocks_do_what_the_page_says(
    page: str, fresh_registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "from fastapi import" in text(page):
        pytest.importorskip("fastapi", reason="fastapi is not installed; pip install -e '.[dev]'")
    if "AutoProcessor" in text(page):
        from doc_processor import stand_in

        stand_in(monkeypatch)
    namespace = _Namespace(__name__=f"docs_{os.path.basename(page).replace('.', '_').replace('-', '_')}")
    found = blocks(page)
    for block, after in zip(found, [*found[1:], None], strict=True):
        if block.language not in ("python", "yaml", "toml") or "no-run" in block.words:
            continue
        assert block.file or all(word in ALLOWED_WORDS for word in block.words), f"{block.where}: {block.words}"
        if "wrong" in block.words:
            _refused(block, after, namespace, fresh_registry)
        else:
            _run(block, namespace, fresh_registry)


@pytest.mark.parametrize("page", having("json"))
def test_lines_of_data_have_the_keys_that_data_may_have(page: str) -> None:
    for block in blocks(page):
        for line in block.text.splitlines() if block.language == "json" else ():
            assert set(json.loads(line)) <= set(KEYS), f"{block.where}: {line}"


def test_few_blocks_stay_untried() -> None:
    untried = [block.where for page in pages() for block in blocks(page) if "no-run" in block.words]
    assert len(untried) <= NO_RUN_MOST, untried
