"""The models that ship: stock classes, whole folders, and answers that come from watching."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import groupby
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from vidsieve.bundled import thresholds
from vidsieve.bundled.bundled_models import MODELS, BundledModel, find, get
from vidsieve.bundled.bundled_task import BundledTask
from vidsieve.bundled.train.batches import frames_for
from vidsieve.bundled.train.language import line_logits
from vidsieve.bundled.train.lines import LENGTH, question_ids
from vidsieve.bundled.train.packed import frame_of
from vidsieve.bundled.train.vision import video_features
from vidsieve.bundled.words import KINDS
from vidsieve.framework.errors import UnknownNameError
from vidsieve.framework.task import Example
from vidsieve.media import Clip, Processor, load_processor

FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "card.md",
    "training-log.jsonl",
}
EACH = pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry.name)


@cache
def _loaded(entry: BundledModel) -> tuple[Any, Processor]:
    model = AutoModelForImageTextToText.from_pretrained(entry.folder).eval()
    return model, load_processor(entry.folder, model.config, prefer_hf=False)


def _clip(example: Example) -> Clip:
    assert example.frames is not None
    return Clip.from_frames(example.frames, fps=example.fps or 8)


def _examples(entry: BundledModel, count: int, split: str = "rerank") -> list[Example]:
    return BundledTask("static", frame_count=entry.frame_count, shape=entry.shape).examples(split, count)


@torch.no_grad()
def _answers(entry: BundledModel, questions: list[str], clips: list[Clip]) -> tuple[list[str], torch.Tensor]:
    model, processor = _loaded(entry)
    inputs = processor.build_inputs(questions, [[clip] for clip in clips])
    said = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.tokenizer.batch_decode(said, skip_special_tokens=True)], said


def test_metadata_loads_without_torch() -> None:
    code = (
        "import sys, vidsieve.bundled.bundled_models as c, vidsieve.bundled.thresholds, vidsieve.bundled.words;"
        "assert c.find('qwen2-vl').folder.is_dir(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_families_and_names_are_found_and_others_refused() -> None:
    assert find("qwen2-vl") is find("qwen2-vl-mini") is get("qwen2-vl")
    assert find("qwen2-vl-tiny") is get("qwen2-vl-tiny") is not find("qwen2-vl")
    assert find("internvl") is None
    with pytest.raises(UnknownNameError, match="llava-onevision-tiny"):
        get("llava-onevision-tiny-2")


@EACH
def test_a_folder_is_a_whole_small_checkpoint(entry: BundledModel) -> None:
    names = {path.name for path in entry.folder.iterdir()}
    assert names >= FILES
    assert (entry.folder / "model.safetensors").stat().st_size <= thresholds.MINI_WEIGHTS_BYTES_MOST
    others = [path.stat().st_size for path in entry.folder.iterdir() if path.suffix != ".safetensors"]
    assert sum(others) < 3e5
    model, _ = _loaded(entry)
    assert model.dtype == torch.float32
    assert type(model).__module__.startswith("transformers.")
    run = json.loads((entry.folder / "training-log.jsonl").read_text().splitlines()[0])
    assert (run["family"], type(run["seed"])) == (entry.family, int)


@EACH
def test_the_tokenizer_has_one_id_a_word(entry: BundledModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(entry.folder)
    words = entry.shape.vocabulary
    assert [tokenizer.convert_ids_to_tokens(i) for i in range(len(words))] == list(words)
    assert tokenizer("Where is the RED flash?").input_ids == tokenizer("where is the red flash ?").input_ids
    assert tokenizer.unk_token_id not in tokenizer("where is the red flash ?").input_ids
    assert tokenizer("zebra").input_ids == [tokenizer.unk_token_id]


@EACH
def test_inputs_have_the_advertised_number_of_visual_tokens(entry: BundledModel) -> None:
    model, processor = _loaded(entry)
    example = _examples(entry, 1)[0]
    ids = processor.build_inputs([example.question], [[_clip(example)]])["input_ids"]
    newline = int(model.config.model_type == "llava_onevision")
    assert int((ids == model.config.video_token_id).sum()) == entry.visual_tokens + newline


@EACH
def test_clips_of_another_size_are_brought_to_the_models(entry: BundledModel) -> None:
    model, processor = _loaded(entry)
    frames = torch.randint(0, 255, (entry.frame_count, 3, 64, 64), dtype=torch.uint8)
    ids = processor.build_inputs(["what color is the disc ?"], [[Clip.from_frames(frames, fps=8)]])["input_ids"]
    newline = int(model.config.model_type == "llava_onevision")
    assert int((ids == model.config.video_token_id).sum()) == entry.visual_tokens + newline


@EACH
def test_transformers_own_processor_gives_the_same_inputs(entry: BundledModel) -> None:
    model, ours = _loaded(entry)
    theirs = load_processor(entry.folder, model.config)
    if theirs.kind != "transformers":
        pytest.skip(theirs.describe())
    example = _examples(entry, 1)[0]
    mine, other = (each.build_inputs([example.question], [[_clip(example)]]) for each in (ours, theirs))
    assert all(torch.equal(mine[name], tensor) for name, tensor in other.items())


@EACH
def test_generating_gives_the_words_that_training_scored(entry: BundledModel) -> None:
    """`generate` on processor inputs against the trainer's packed pass: same word, then the end."""
    model, _ = _loaded(entry)
    examples = _examples(entry, 2 * len(KINDS))[:: 1 if entry.shape.layers == 4 else 9]
    _, said = _answers(entry, [one.question for one in examples], [_clip(one) for one in examples])
    assert said[:, 0].tolist() == _packed_answers(entry, examples)
    assert bool((said[:, 1] == model.generation_config.eos_token_id).all())


@EACH
def test_easy_clips_are_answered(entry: BundledModel) -> None:
    examples = _examples(entry, 64 if entry.shape.layers == 4 else 44)
    assert _share_right(entry, examples, _packed_answers(entry, examples)) >= 0.85


@EACH
def test_without_the_right_clip_the_answers_are_guesses(entry: BundledModel) -> None:
    kinds = len(entry.shape.kinds)
    examples = _examples(entry, 4 * kinds)
    frames = [one.frames for one in examples[kinds:] + examples[:kinds]]
    others = [replace(one, frames=other) for one, other in zip(examples, frames, strict=True)]
    assert _share_right(entry, examples, _packed_answers(entry, others)) < 0.55


@torch.no_grad()
def _packed_answers(entry: BundledModel, examples: list[Example]) -> list[int]:
    """The first word of every answer by the trainer's packed pass, one pass a clip."""
    model, _ = _loaded(entry)
    after, answers = frame_of(model).after, []
    for _, alike in groupby(examples, key=lambda one: one.group):
        asked = list(alike)
        assert asked[0].frames is not None
        tokens = video_features(model, asked[0].frames[None]).flatten(1, 2)
        assert tokens.shape[1] == entry.visual_tokens
        rows = [question_ids(after, one.question) for one in asked]
        ids = torch.tensor([[row + [0] * (LENGTH - len(row)) for row in rows]])
        index = torch.arange(tokens.shape[1])[None]
        logits = line_logits(model, entry.shape, tokens, index, entry.shape.groups, ids)[0]
        answers += [int(logits[line, len(row) - 1].argmax()) for line, row in enumerate(rows)]
    return answers


def _share_right(entry: BundledModel, examples: list[Example], answers: list[int]) -> float:
    words = entry.shape.vocabulary
    return sum(words[said] == one.answer for said, one in zip(answers, examples, strict=True)) / len(examples)


@EACH
def test_the_card_reports_every_policy_rung_and_threshold(entry: BundledModel) -> None:
    card = entry.card.read_text(encoding="utf-8")
    for name in (*thresholds.TABLE_POLICIES, *entry.shape.kinds):
        assert f"| {name}" in card
    for rung in ("static", "jitter", "cuts"):
        assert f"### {rung}" in card
    promised = card.partition("### Thresholds")[2].splitlines()
    assert sum(line.startswith("- ") for line in promised) == (4 if entry.shape.layers == 4 else 9)


def test_llava_trains_on_the_frames_that_the_task_gives_it() -> None:
    model, _ = _loaded(get("llava-onevision-tiny"))
    whole = torch.stack([one.frames for one in BundledTask("cuts").examples("search", 1) if one.frames is not None])
    half = BundledTask("cuts", frame_count=8).examples("search", 1)[0].frames
    assert half is not None
    assert torch.equal(frames_for(model, whole)[0], half)
