"""The models that ship: stock classes, whole folders, and answers that come from watching."""

import json
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from vidsieve.bundled import thresholds
from vidsieve.bundled.bundled_models import MODELS, BundledModel, find, get
from vidsieve.bundled.bundled_task import BundledTask
from vidsieve.bundled.shapes import shape_of
from vidsieve.bundled.train.batches import frames_for
from vidsieve.bundled.train.language import line_logits
from vidsieve.bundled.train.lines import LENGTH, question_ids
from vidsieve.bundled.train.packed import frame_of
from vidsieve.bundled.train.vision import video_features
from vidsieve.bundled.words import KINDS, VOCABULARY
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
    return BundledTask("static", frame_count=entry.frame_count).examples(split, count)


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
    assert find("qwen2-vl") is find("qwen2-vl-tiny") is get("qwen2-vl")
    assert find("internvl") is None
    with pytest.raises(UnknownNameError, match="llava-onevision-tiny"):
        get("llava-onevision-tiny-2")


@EACH
def test_a_folder_is_a_whole_small_checkpoint(entry: BundledModel) -> None:
    names = {path.name for path in entry.folder.iterdir()}
    assert names >= FILES
    assert sum(path.stat().st_size for path in entry.folder.iterdir()) < 5e6
    model, _ = _loaded(entry)
    assert model.dtype == torch.float32
    assert type(model).__module__.startswith("transformers.")
    run = json.loads((entry.folder / "training-log.jsonl").read_text().splitlines()[0])
    assert (run["family"], type(run["seed"])) == (entry.family, int)


@EACH
def test_the_tokenizer_has_one_id_a_word(entry: BundledModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(entry.folder)
    assert [tokenizer.convert_ids_to_tokens(i) for i in range(len(VOCABULARY))] == list(VOCABULARY)
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
    examples = _examples(entry, 2 * len(KINDS))
    _, said = _answers(entry, [one.question for one in examples], [_clip(one) for one in examples])
    frames = torch.stack([one.frames for one in examples if one.frames is not None])
    tokens = video_features(model, frames).flatten(1, 2)
    assert tokens.shape[1] == entry.visual_tokens
    rows = [question_ids(frame_of(model).after, one.question) for one in examples]
    ids = torch.tensor([[row + [0] * (LENGTH - len(row))] for row in rows])
    index = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
    logits = line_logits(model, shape_of(entry.name), tokens, index, 8, ids)[:, 0]
    packed = torch.stack([logits[i, len(row) - 1].argmax() for i, row in enumerate(rows)])
    assert torch.equal(said[:, 0], packed)
    assert bool((said[:, 1] == model.generation_config.eos_token_id).all())


@EACH
def test_easy_clips_are_answered(entry: BundledModel) -> None:
    examples = _examples(entry, 64)
    answers, _ = _answers(entry, [one.question for one in examples], [_clip(one) for one in examples])
    right = sum(answer == one.answer for answer, one in zip(answers, examples, strict=True))
    assert right / len(examples) >= 0.9


@EACH
def test_without_the_right_clip_the_answers_are_guesses(entry: BundledModel) -> None:
    examples = _examples(entry, 8 * len(KINDS))
    others = [_clip(one) for one in examples[len(KINDS) :] + examples[: len(KINDS)]]
    answers, _ = _answers(entry, [one.question for one in examples], others)
    right = sum(answer == one.answer for answer, one in zip(answers, examples, strict=True))
    assert right / len(examples) < 0.55


@EACH
def test_the_card_reports_every_policy_rung_and_threshold(entry: BundledModel) -> None:
    card = entry.card.read_text(encoding="utf-8")
    for name in (*thresholds.TABLE_POLICIES, *KINDS):
        assert f"| {name}" in card
    for rung in ("static", "jitter", "cuts"):
        assert f"### {rung}" in card
    assert card.count(": measured ") == 4


def test_llava_trains_on_the_frames_that_the_task_gives_it() -> None:
    model, _ = _loaded(get("llava-onevision-tiny"))
    whole = torch.stack([one.frames for one in BundledTask("cuts").examples("search", 1) if one.frames is not None])
    half = BundledTask("cuts", frame_count=8).examples("search", 1)[0].frames
    assert half is not None
    assert torch.equal(frames_for(model, whole)[0], half)
