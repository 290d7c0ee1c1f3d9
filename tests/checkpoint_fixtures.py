"""Tiny checkpoints with random weights, a small labelled data set, and a runner for the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from vidsieve.bundled import bundled_models
from vidsieve.bundled.bundled_task import BundledTask, write_dataset
from vidsieve.bundled.shapes import shape_of
from vidsieve.bundled.train.configs import build_model
from vidsieve.bundled.train.package import save_package
from vidsieve.media import write_video

Invoke = Callable[..., Result]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all bundled models, untrained."""
    root = tmp_path_factory.mktemp("models")
    for model in bundled_models.MODELS:
        torch.manual_seed(0)
        shape = shape_of(model.name)
        save_package(build_model(shape).eval(), shape, root / model.name)
    return root


@pytest.fixture
def qwen(models: Path) -> Path:
    return models / "qwen2-vl-tiny"


@pytest.fixture
def llava(models: Path) -> Path:
    return models / "llava-onevision-tiny"


@pytest.fixture
def bundled(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The untrained models stand in for the bundled ones."""
    monkeypatch.setattr(bundled_models, "MODELS_FOLDER", models)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`examples.jsonl` with four clips, three questions each."""
    folder = tmp_path_factory.mktemp("data")
    write_dataset(BundledTask("static"), "search", 36, folder, write_video=write_video)
    lines = (folder / "examples.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["kind"] in ("exist", "direction", "disc_color")]
    (folder / "examples.jsonl").write_text("\n".join(kept) + "\n")
    return folder / "examples.jsonl"


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Invoke:
    """Run the command line in an empty folder; every argument becomes text."""
    from vidsieve.cli.app import app

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("VIDSIEVE_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert "Traceback" not in result.output
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that take 100 ms uncompressed, and 20 ms plus 80 ms times what a policy keeps."""
    from vidsieve.harness.model_bench import Workbench

    def timed(self: Workbench, policy: object, clip_index: int, metric: str) -> dict[str, float]:
        kept = 1.0 if policy is None else getattr(policy, "retention_ratio", None) or 0.3
        total = 20.0 + 80.0 * kept
        parts = {"vision_ms": 10.0, "compress_ms": 1.0, "prefill_ms": total - 11.0}
        return {f"{metric}_ms": total, **parts}

    monkeypatch.setattr(Workbench, "timed", timed)
