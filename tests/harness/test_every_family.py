"""`run`, `tune` and `eval` on a tiny model of every family, from its folder; torchvision is not asked for."""

import json
import shutil
from pathlib import Path

import matplotlib
import pytest
from adapters.kits import kits
from checkpoint_fixtures import Invoke
from media.checkpoints import SPECIAL, write_checkpoint

from vidsieve.framework.registry import default

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
WORK = ("--frames", 4, "--max-new-tokens", 2)
CAPS = {"qwen2.5-omni": ("--max-pixels", 768)}  # its processor's own least is 100352 pixels a frame


@pytest.fixture(params=sorted(SPECIAL))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family's tiny model with tokenizer and settings."""
    family = request.param
    folder = tmp_path_factory.mktemp("checkpoint") / family
    kits()[family]().build_model().save_pretrained(folder)
    write_checkpoint(family, folder, **({"draw_on_frames": True} if family == "ernie-4.5-vl" else {}))
    if family == "ernie-4.5-vl":
        shutil.copy(FONT, folder / "Roboto-Regular.ttf")
    return folder


def test_the_families_here_are_all_there_are() -> None:
    assert set(SPECIAL) == set(default().models)
    assert {name: adapter.needs for name, adapter in default().models.items() if adapter.needs} == {
        "ernie-4.5-vl": ("Pillow", "the checkpoint's font, for the times on frames")
    }


def test_a_family_is_run(invoke: Invoke, checkpoint: Path, dataset: Path) -> None:
    words = ("--model", checkpoint, *WORK, *CAPS.get(checkpoint.name, ()))
    clip = sorted(dataset.parent.glob("*.mp4"))[0]
    result = invoke("run", *words, "--retention", 0.5, clip, "what moves?", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert 0 < told["compressed"]["visual_tokens"] < told["uncompressed"]["visual_tokens"]
    assert all(told[side]["vision_ms"] > 0 for side in ("uncompressed", "compressed"))
    whole = json.loads(invoke("run", *words, "--policy", "none", clip, "what moves?", "--json").stdout)
    assert whole["same_answer"]
    one = invoke("run", *words, "--frames", 1, "--retention", 0.5, clip, "what moves?", "--json")
    assert one.exit_code == 0, one.stderr


def test_a_family_is_tuned_and_evaluated(invoke: Invoke, fake_time: None, checkpoint: Path, dataset: Path) -> None:
    words = ("--model", checkpoint, *WORK, *CAPS.get(checkpoint.name, ()), "--data", dataset)
    search = ("--trials", 1, "--examples", 2, "--policies", "vidcom2", "--in-process", "--speedup", 1.2)
    result = invoke("tune", *words, *search)
    assert result.exit_code == 0, result.stderr
    result = invoke("eval", *words, "--policy", "policy.yaml", "--examples", 2, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["accuracy"]["examples"] == 2
