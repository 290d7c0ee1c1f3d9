"""`run`, `tune` and `eval` on a tiny model of every family, from its folder; torchvision is not asked for."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from adapters.kits import kits
from checkpoint_fixtures import Invoke
from media.checkpoints import SPECIAL, write_checkpoint
from safetensors.torch import save_file

from vidsieve import load_policy
from vidsieve.adapters.adapter import Adapter
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.registry import default
from vidsieve.harness.data.clip_reader import ClipReader
from vidsieve.harness.data.user_data import LabelledData
from vidsieve.harness.example_batches import ExampleBatches
from vidsieve.harness.example_scoring import Scorer
from vidsieve.harness.model_bench import Workbench
from vidsieve.harness.model_choice import choose
from vidsieve.harness.model_loading import load
from vidsieve.harness.question_batch import OnePrefix
from vidsieve.harness.runner import Runner, Runners
from vidsieve.harness.session import with_task
from vidsieve.harness.setup import Setup
from vidsieve.tuner.protocol import SmallerInput

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
WORK = ("--frames", 4, "--max-new-tokens", 2)
CAPS = {"qwen2.5-omni": ("--max-pixels", 768)}  # its processor's own least is 100352 pixels a frame

LONE = ("glm4v", "internvl3", "qwen3-vl", "smolvlm2")  # of images, or whose own processor refuses a lone frame
SHARED = ("glm4v", "qwen3-vl", "qwen3.5", "videollama3")  # fewer frames share the same pixels


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


@pytest.mark.parametrize(
    ("checkpoint", "frames"),
    [*((name, 4) for name in sorted(SPECIAL)), *((name, 1) for name in LONE)],
    indirect=["checkpoint"],
)
def test_a_family_gives_what_tune_and_eval_measure(checkpoint: Path, dataset: Path, frames: int) -> None:
    cap = 768 if checkpoint.name in CAPS else None
    setup = Setup(model=str(checkpoint), frames=frames, max_new_tokens=2, max_pixels=cap, batch_size=2)
    session = with_task(setup, choose(setup.model, None, default()), LabelledData(dataset), default())
    bench, examples = session.bench, LabelledData(dataset).all[:2]
    half, whole = load_policy("vidcom2", retention_ratio=0.5), load_policy("none")
    assert bench.shape.frames * bench.shape.tokens == session.bench.runner.visual_tokens(examples)[0] > 0
    assert bench.timed(half, 0, "e2e")["vision_ms"] > 0
    assert list(bench.score(whole, examples)) == list(bench.score(None, examples))
    assert all(outcome.retention_ratio == pytest.approx(0.5, abs=0.15) for outcome in bench.score(half, examples))
    for kind in sorted(bench.smaller) if frames > 1 else ():
        smaller = SmallerInput(kind=kind, ratio=0.5)  # type: ignore[arg-type]
        most = 1 if kind == "frames" and checkpoint.name in SHARED else 0.75
        assert all(0 < (outcome.retention_ratio or 0) <= most for outcome in bench.score(smaller, examples)), kind


def test_a_family_scores_the_questions_about_a_video_as_one_by_one(checkpoint: Path, dataset: Path) -> None:
    """By first tokens, by whole options (they begin alike) and written; the prompts have unequal lengths."""
    setup = Setup(
        model=str(checkpoint), frames=4, max_new_tokens=2, max_pixels=768 if checkpoint.name in CAPS else None
    )
    loaded = load(choose(setup.model, None, default()), setup, default())
    runners = Runners(Runner(loaded, ClipReader.of(setup, loaded.choice)), lambda: 768)
    first, second, third = LabelledData(dataset).all[:3]
    asked = [
        replace(first, question="A or B", options=("A", "B"), answer="B"),
        replace(second, question="is it Ab or Ac", options=("Ab", "Ac"), answer="Ac"),
        replace(third, question="which way", options=None),
    ]
    batch = next(ExampleBatches(runners, 2, lambda example: "written").of(None, asked))
    assert isinstance(batch, OnePrefix) is (checkpoint.name not in ("gemma4", "qwen3.5"))
    shared, whole = Scorer(runners, "accuracy", 2, 2), Scorer(runners, "accuracy", 1, 2, share_prefix=False)
    for policy in (None, load_policy("random", retention_ratio=0.5)):
        for one, other in zip(shared.score(policy, asked), whole.score(policy, asked), strict=True):
            assert replace(one, p_gold=None) == replace(other, p_gold=None)
            assert one.p_gold == pytest.approx(other.p_gold, abs=1e-5)


ENCODED = ("gemma4", "qwen3-vl", "smolvlm2")
"""The laws of adapters say the rest of all families in less time."""


@pytest.mark.parametrize(
    "checkpoint",
    [n if n in ENCODED else pytest.param(n, marks=pytest.mark.slow) for n in sorted(SPECIAL)],
    indirect=True,
)
def test_a_family_scores_the_same_with_clips_encoded_once(checkpoint: Path, dataset: Path) -> None:
    cap = 768 if checkpoint.name in CAPS else None
    whole: dict[str, Any] = {"batch_size": 2, "whole_prompts": True}  # which take features once a question
    words = Setup(model=str(checkpoint), frames=4, max_new_tokens=2, max_pixels=cap, **whole)
    examples = [*LabelledData(dataset).all[:2], LabelledData(dataset).all[-1]]  # one clip twice, then another
    loaded = load(choose(words.model, None, default()), words, default())
    every = Workbench(loaded, replace(words, feature_store="off"), "accuracy", examples)
    policies = [load_policy("vidcom2", retention_ratio=0.5)]
    policies += [load_policy(name) for name in ("visionzip", "pixel-change") if fits(loaded.adapter, load_policy(name))]
    for _ in range(2):  # the second bench reads what the first has left on disk
        once = Workbench(loaded, words, "accuracy", examples)
        for policy in (None, *policies):
            assert list(once.score(policy, examples)) == list(every.score(policy, examples)), policy
    assert once.encoding is not None
    assert (once.encoding.passes, once.encoding.saved_passes) == (0, len(examples) * (1 + len(policies)))


def fits(adapter: Adapter, policy: Policy) -> bool:
    return policy.hooks <= adapter.runs and policy.needs() <= adapter.offers


VIEWED = ("video-llava", "videollama3")
"""Whose frames are cropped, and whose processor leaves tokens out itself; the others are slow cases."""


@pytest.mark.parametrize(
    "checkpoint",
    [n if n in VIEWED else pytest.param(n, marks=pytest.mark.slow) for n in sorted(SPECIAL)],
    indirect=True,
)
def test_a_family_is_viewed(invoke: Invoke, checkpoint: Path, dataset: Path) -> None:
    words = ("--model", checkpoint, *WORK, *CAPS.get(checkpoint.name, ()))
    clip = sorted(dataset.parent.glob("*.mp4"))[0]
    result = invoke("view", clip, *words, "--policy", "vidcom2", "--policy", "random", "--retention", 0.5, "--json")
    assert result.exit_code == 0, result.stderr
    first, second = json.loads(result.stdout)["policies"]
    assert first["baseline_tokens"] == second["baseline_tokens"] >= first["prompt_tokens"] > 0
    page = Path("view.html").read_text(encoding="utf-8")
    # one picture a unit, each of what the model sees
    assert page.count("data:image/jpeg;base64,") == len(first["per_frame"])


TUNED = ("internvl3", "smolvlm2")  # whose frames are images; the others are slow cases


@pytest.mark.parametrize(
    "checkpoint", [n if n in TUNED else pytest.param(n, marks=pytest.mark.slow) for n in sorted(SPECIAL)], indirect=True
)
def test_a_family_is_tuned_and_evaluated(invoke: Invoke, fake_time: None, checkpoint: Path, dataset: Path) -> None:
    words = ("--model", checkpoint, *WORK, *CAPS.get(checkpoint.name, ()), "--data", dataset)
    search = ("--trials", 1, "--examples", 2, "--policies", "vidcom2", "--in-process", "--speedup", 1.2)
    result = invoke("tune", *words, *search)
    assert result.exit_code == 0, result.stderr
    result = invoke("eval", *words, "--policy", "policy.yaml", "--examples", 2, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["accuracy"]["examples"] == 2


def test_the_thinker_is_taken_out_of_a_checkpoint_of_the_whole_model(tmp_path: Path, dataset: Path) -> None:
    """Its weights carry the prefix of the part, its configuration that of the whole."""
    thinker = kits()["qwen2.5-omni"]().build_model()
    weights = {f"thinker.{name}": weight.contiguous() for name, weight in thinker.state_dict().items()}
    save_file(weights | {"talker.head": torch.ones(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    whole = {"architectures": ["Qwen2_5OmniModel"], "model_type": "qwen2_5_omni"}
    (tmp_path / "config.json").write_text(json.dumps(whole | {"thinker_config": thinker.config.to_dict()}))
    write_checkpoint("qwen2.5-omni", tmp_path)
    setup = Setup(model="qwen2.5-omni", checkpoint=str(tmp_path), frames=2, max_pixels=768)
    loaded = load(choose(setup.model, setup.checkpoint, default()), setup, default())
    came = loaded.model.state_dict()
    assert all(torch.equal(came[name], weight) for name, weight in thinker.state_dict().items())
    assert Workbench.of_task(loaded, setup, LabelledData(dataset)).shape.tokens > 0
