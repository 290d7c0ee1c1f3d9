"""The tutorial's plugin works as a lone file and as an installed package, each in a process of its own."""

import json
import os
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from doc_pages import ROOT, blocks

TUTORIAL = "docs/tutorials/02-write-a-stage.md"
PLAN = """
import json, torch
from vidsieve import load_policy
from vidsieve.framework.registry import default
report = load_policy("norm.yaml").plan(torch.randn(8, 16, 32)).report
print(json.dumps({"kept": report.kept_tokens, "from": default().origin("stage", "feature-norm")}))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of the tutorial."""
    for block in blocks(TUTORIAL):
        if block.file:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
    return tmp_path


def _run(folder: Path, *arguments: str, path: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    search = os.pathsep.join([*map(str, path), str(ROOT)])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": search, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _install(folder: Path) -> Path:
    """What `pip install .` leaves behind: the module and the metadata with the entry points of pyproject.toml."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    site = folder / "site"
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (site / "feature_norm.py").write_text((folder / "feature_norm.py").read_text(encoding="utf-8"), encoding="utf-8")
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8"
    )
    lines = [f"{name} = {value}" for name, value in project["entry-points"]["vidsieve"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[vidsieve]", *lines, ""]), encoding="utf-8")
    return site


def test_the_readme_shows_the_same_plugin() -> None:
    def shown(page: str) -> str:
        return next(block.text for block in blocks(page) if block.file == "feature_norm.py")

    assert shown("README.md") == shown(TUTORIAL)


def test_works_as_a_lone_file(folder: Path) -> None:
    checked = _run(folder, "-m", "vidsieve.cli", "check", "norm.yaml", "--plugin", "feature_norm.py", "--json")
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)[0]["stages"] == ["uniform-budget", "feature-norm", "top-k"]


def test_is_unknown_without_the_file(folder: Path) -> None:
    checked = _run(folder, "-m", "vidsieve.cli", "check", "norm.yaml")
    assert checked.returncode == 1
    assert "no stage named 'feature-norm'" in checked.stderr


def test_works_as_an_installed_package(folder: Path) -> None:
    planned = _run(folder, "-c", PLAN, path=(_install(folder),))
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout) == {"kept": 32, "from": "feature_norm"}


def test_the_file_and_the_package_together_are_one(folder: Path) -> None:
    site = _install(folder)
    checked = _run(
        folder, "-m", "vidsieve.cli", "check", "norm.yaml", "--plugin", str(site / "feature_norm.py"), path=(site,)
    )
    assert checked.returncode == 0, checked.stderr


def test_the_tutorials_test_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    try:
        contract = runpy.run_path(str(folder / "test_feature_norm.py"))["TestFeatureNorm"]()
    finally:
        sys.modules.pop("feature_norm", None)
    laws = [name for name in dir(contract) if name.startswith("test_")]
    assert len(laws) > 3
    for law in laws:
        getattr(contract, law)()
