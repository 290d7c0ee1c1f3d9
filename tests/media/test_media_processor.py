"""Building inputs: prompts, placeholders, caps, and what is refused."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from adapters.kits import kits
from media import checkpoints
from media.golden_cases import pattern
from PIL import Image, ImageDraw, ImageFont
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig

from vidsieve.framework.errors import InputError, MediaError, ModelError, UsageError
from vidsieve.media import Clip, Processor, load_processor
from vidsieve.media.patch_encoders import PatchEncoder
from vidsieve.media.processor import VidsieveProcessor
from vidsieve.media.processor_loading import build_encoder
from vidsieve.media.prompter import Prompter, in_words
from vidsieve.media.settings import Settings

DATA = Path(__file__).parents[1] / "data" / "media"
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "llava_onevision", "llava_next_video")
QUESTION = "what moves"
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def ours(family: str, **options: int) -> Processor:
    folder = DATA / family
    return load_processor(folder, AutoConfig.from_pretrained(folder), prefer_hf=False, **options)


def clip(count: int = 4, height: int = 24, width: int = 32, seed: int = 0) -> Clip:
    return Clip.from_frames(torch.from_numpy(pattern(count, height, width, seed)), fps=10)


def changed(tmp_path: Path, family: str, name: str, content: dict | str) -> Path:
    """A copy of the family's folder in which the file `name` holds `content`."""
    folder = tmp_path / family
    shutil.copytree(DATA / family, folder)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_takes_the_inputs_as_they_are(family: str) -> None:
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(DATA / family)).eval()
    prompts = [QUESTION, "where is the red square now"]
    inputs = ours(family).build_inputs(prompts, [[clip()], [clip(seed=1), clip(seed=2)]])
    answers = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert answers.shape[0] == 2
    assert answers.shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_holds_its_rows_as_built_alone(family: str) -> None:
    processor = ours(family)
    prompts, clips = [QUESTION, "where is the red square now"], [[clip()], [clip(seed=1), clip(seed=2)]]
    batch = processor.build_inputs(prompts, clips)
    for row, (prompt, videos) in enumerate(zip(prompts, clips, strict=True)):
        alone = processor.build_inputs([prompt], [videos])
        length = alone["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][row, -length:], alone["input_ids"][0])
        assert batch["attention_mask"][row].sum() == length
        assert batch["attention_mask"][row, -length:].all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("build", [VidsieveProcessor.build_shared, Processor.build_shared], ids=["ours", "any"])
def test_prompts_about_one_clip_are_those_built_alone(family: str, build: Any) -> None:
    processor, prompts = ours(family), [QUESTION, "where is the red square now", "?"]
    inputs, ids = build(processor, prompts, [clip()])
    alone = [processor.build_inputs([prompt], [[clip()]]) for prompt in prompts]
    assert inputs.keys() == alone[0].keys()
    assert all(torch.equal(inputs[name], alone[0][name]) for name in inputs)
    assert all(torch.equal(row, one["input_ids"][0]) for row, one in zip(ids, alone, strict=True))


def test_token_types_mark_exactly_the_placeholders() -> None:
    processor = ours("qwen2_vl")
    inputs = processor.build_inputs([QUESTION], [[clip()]])
    visual = inputs["input_ids"] == processor.prompter.visual_token_id
    assert torch.equal(inputs["mm_token_type_ids"], 2 * visual.long())
    assert visual.sum() == inputs["video_grid_thw"].prod() // 4


def test_a_finished_prompt_is_taken_word_for_word() -> None:
    processor = ours("qwen2_vl")
    text = processor.prompter.text(QUESTION, 1)
    finished = processor.build_inputs([text], [[clip()]])["input_ids"]
    assert torch.equal(finished, processor.build_inputs([QUESTION], [[clip()]])["input_ids"])
    assert processor.prompter.text("<video> what", 1) == "<video> what"


def test_without_a_template_the_placeholders_come_before_the_question() -> None:
    assert ours("llava_next_video").prompter.text(QUESTION, 2) == "<video><video>what moves"


def test_a_template_for_text_alone_gets_the_placeholders_written_out(tmp_path: Path) -> None:
    template = "{% for m in messages %}user : {{ m.content + '' }}{% endfor %} assistant :"
    folder = changed(tmp_path, "qwen2_vl", "chat_template.jinja", template)
    processor = load_processor(folder, AutoConfig.from_pretrained(folder), prefer_hf=False)
    assert processor.prompter.text(QUESTION, 1) == "user : <video>\nwhat moves assistant :"
    assert processor.prompter.text(QUESTION, 0) == "user : what moves assistant :"


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_onevision"])
def test_a_conversation_is_what_the_chat_template_makes_of_it(family: str) -> None:
    prompter = ours(family).prompter
    video, ask = {"type": "video"}, {"type": "text", "text": "which one is red ?"}
    turns = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "first :"}, video, {"type": "text", "text": "then :"}, video, ask],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "the second"}]},
        {"role": "user", "content": [{"type": "text", "text": "and now ?"}]},
    ]
    wanted = prompter.tokenizer.apply_chat_template(
        turns, chat_template=prompter.template, tokenize=False, add_generation_prompt=True
    )
    assert prompter.conversation(turns) == wanted
    assert prompter.conversation([{"role": "user", "content": [video, ask]}]) == prompter.text(ask["text"], 1)
    inputs = ours(family).build_written([wanted], [[clip(), clip(seed=1)]])
    assert torch.equal(inputs["input_ids"], ours(family).build_inputs([wanted], [[clip(), clip(seed=1)]])["input_ids"])


def test_a_finished_prompt_without_video_is_not_put_into_the_template_again() -> None:
    processor = ours("qwen2_vl")
    text = processor.prompter.conversation([{"role": "user", "content": [{"type": "text", "text": "hello"}]}])
    inputs = processor.build_written([text], [[]])
    assert inputs["input_ids"][0].tolist() == processor.prompter.token_ids(text)


def test_a_template_that_loses_the_question_is_refused(tmp_path: Path) -> None:
    folder = changed(tmp_path, "qwen2_vl", "chat_template.jinja", "user : <video> assistant :")
    processor = load_processor(folder, AutoConfig.from_pretrained(folder), prefer_hf=False)
    with pytest.raises(InputError, match="prompt"):
        processor.build_inputs([QUESTION], [[clip()]])


@pytest.mark.parametrize(("prompt", "count"), [("<video> <video> what", 1), ("<video> what", 0), ("<video>", 2)])
def test_placeholders_that_do_not_fit_the_videos_are_refused(prompt: str, count: int) -> None:
    with pytest.raises(InputError, match=f"{count} videos were given, but"):
        ours("qwen2_vl").build_inputs([prompt], [[clip()] * count])


def test_prompts_and_clips_of_unequal_number_are_refused() -> None:
    with pytest.raises(InputError, match="1 prompts and 2 lists"):
        ours("qwen2_vl").build_inputs([QUESTION], [[clip()], []])
    with pytest.raises(InputError, match="0 prompts"):
        ours("qwen2_vl").build_inputs([], [])


def test_unequal_frame_counts_are_refused_where_the_model_cannot_take_them() -> None:
    two = [clip(3), clip(4)]
    with pytest.raises(InputError, match=r"equal frame count.*\[3, 4\]"):
        ours("llava_onevision").build_inputs([QUESTION], [two])
    assert len(ours("qwen2_vl").build_inputs([QUESTION], [two])["video_grid_thw"]) == 2


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("cap", [64, 200, 500])
def test_a_capped_processor_is_the_one_built_with_that_cap(family: str, cap: int) -> None:
    before = ours(family)
    capped = before.capped(cap)
    assert capped is not None
    for shape in ((24, 32), (90, 20), (7, 11)):
        came, wanted = (p.build_inputs([QUESTION], [[clip(2, *shape)]]) for p in (capped, ours(family, max_pixels=cap)))
        assert came.keys() == wanted.keys()
        assert all(torch.equal(came[name], wanted[name]) for name in wanted)
    untouched, fresh = (p.build_inputs([QUESTION], [[clip(2, 24, 32)]]) for p in (before, ours(family)))
    assert all(torch.equal(untouched[name], fresh[name]) for name in fresh)


def test_a_cap_below_one_token_leaves_one_token_a_frame() -> None:
    capped = ours("qwen2_vl").capped(1)
    assert capped is not None
    assert capped.build_inputs([QUESTION], [[clip(2)]])["video_grid_thw"].tolist() == [[1, 2, 2]]


@pytest.mark.parametrize("family", ["llava_onevision", "llava_next_video"])
def test_a_processor_of_one_frame_size_cannot_be_capped(family: str) -> None:
    assert ours(family).capped(10_000_000) is None


@pytest.mark.parametrize("cap", [64, 200, 500])
def test_max_pixels_caps_every_frame(cap: int) -> None:
    processor = ours("qwen2_vl", max_pixels=cap)
    for shape in ((24, 32), (90, 20), (7, 11)):
        _, h, w = processor.build_inputs([QUESTION], [[clip(2, *shape)]])["video_grid_thw"][0].tolist()
        assert h * w * 4 * 4 <= cap or min(h, w) == 2  # the thinnest frame is one merged patch wide
    assert processor.token_pixels == 64


def test_a_cap_that_cannot_be_kept_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="at least 64 pixels here, got 63"):
        ours("qwen2_vl", max_pixels=63)
    with pytest.raises(UsageError, match="16 x 16 = 256 pixels, a cap of 255"):
        ours("llava_onevision", max_pixels=255)
    with pytest.raises(UsageError, match="at least 1, got 0"):
        ours("llava_onevision", max_pixels=0)


def test_a_cap_above_a_fixed_frame_size_changes_nothing() -> None:
    free, capped = ours("llava_onevision"), ours("llava_onevision", max_pixels=256)
    a, b = (p.build_inputs([QUESTION], [[clip()]]) for p in (free, capped))
    assert torch.equal(a["pixel_values_videos"], b["pixel_values_videos"])
    assert free.token_pixels is None


def test_without_torchvision_ours_is_used_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidsieve.media.processor_loading.find_spec", lambda name: None)
    processor = load_processor(DATA / "qwen2_vl", AutoConfig.from_pretrained(DATA / "qwen2_vl"), prefer_hf=True)
    assert processor.kind == "vidsieve"
    assert "256 to 768 pixels a frame (torchvision is not installed" in processor.describe()


def test_a_broken_torchvision_is_told_and_ours_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    processor = load_processor(DATA / "qwen2_vl", AutoConfig.from_pretrained(DATA / "qwen2_vl"), prefer_hf=True)
    assert processor.kind == "vidsieve"
    assert "operator nms does not exist" in processor.describe()


def test_a_model_without_preprocessing_lists_those_that_have_it() -> None:
    class Other(PretrainedConfig):
        model_type = "other"

    config = Other(video_token_id=6)
    with pytest.raises(ModelError, match="model type 'other'; known are ernie4_5_vl_moe, gemma4, glm4v"):
        load_processor(DATA / "qwen2_vl", config, prefer_hf=False)


def test_a_tokenizer_without_the_placeholder_is_refused() -> None:
    config = AutoConfig.from_pretrained(DATA / "qwen2_vl")
    config.video_token_id = 151656
    with pytest.raises(InputError, match="placeholder has id 151656"):
        load_processor(DATA / "qwen2_vl", config, prefer_hf=False)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(DATA / "qwen2_vl")
    with pytest.raises(ModelError, match="tokenizer cannot be loaded"):
        load_processor(tmp_path, config, prefer_hf=False)


@pytest.mark.parametrize("bad", [{"do_rescale": False}, {"do_resize": False}, {"resample": 0}])
def test_settings_we_cannot_follow_are_refused(tmp_path: Path, bad: dict) -> None:
    folder = changed(tmp_path, "qwen2_vl", "preprocessor_config.json", bad)
    with pytest.raises(MediaError, match=next(iter(bad))):
        load_processor(folder, AutoConfig.from_pretrained(folder), prefer_hf=False)


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_settings_that_are_no_json_object_are_refused(tmp_path: Path, content: str) -> None:
    folder = changed(tmp_path, "qwen2_vl", "preprocessor_config.json", content)
    with pytest.raises(MediaError, match=r"preprocessor_config\.json: .*JSON"):
        load_processor(folder, AutoConfig.from_pretrained(folder), prefer_hf=False)


def test_without_settings_the_sizes_are_the_models_own(tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(DATA / "qwen2_vl", folder)
    (folder / "preprocessor_config.json").unlink()
    processor = load_processor(folder, AutoConfig.from_pretrained(folder), prefer_hf=False)
    inputs = processor.build_inputs([QUESTION], [[clip()]])
    assert inputs["pixel_values_videos"].shape[1] == 3 * 2 * 4 * 4
    assert "100352 to 602112 pixels" in processor.describe()


def of_family(family: str, **video: Any) -> VidsieveProcessor:
    """Ours for the tiny model of a family, with these changes to its settings."""
    config = kits()[family]().build_model().config
    settings = Settings(video=checkpoints.SETTINGS[family] | video, font=FONT)
    encoder = build_encoder(config, settings, None, family)
    assert encoder is not None
    return VidsieveProcessor(
        Prompter.build(checkpoints.tokenizer(family), config, checkpoints.template(family)), encoder
    )


KEPT_SHAPE = ("qwen3-vl", "glm4v", "videollama3", "ernie-4.5-vl", "qwen2-vl")


@pytest.mark.parametrize("family", KEPT_SHAPE)
def test_no_frame_is_above_the_users_cap(family: str) -> None:
    whole, draw = of_family(family).encoder, Random(family)
    for _ in range(300):
        count, height, cap = draw.randint(1, 9), draw.randint(1, 2000), draw.randint(64, 4000)
        width = max(1, min(2000, int(height * 150 ** draw.uniform(-1, 1))))
        encoder = whole.capped(cap)
        assert isinstance(encoder, PatchEncoder)
        if max(height, width) > 200 * min(height, width):
            continue
        new_height, new_width = encoder._size(count, height, width)
        assert new_height % 8 == new_width % 8 == 0
        assert min(new_height, new_width) >= 8
        assert new_height * new_width <= cap or min(new_height, new_width) == 8, (count, height, width, cap)


@pytest.mark.parametrize("cap", [1, 600])
def test_gemma_frames_have_no_more_tokens_than_the_cap_allows(cap: int) -> None:
    processor = of_family("gemma4").capped(cap)
    assert processor is not None
    inputs = processor.build_inputs([QUESTION], [[clip(2)]])
    used = (inputs["video_position_ids"][0, :, 0] >= 0).sum() * 16
    assert used <= max(cap, 64)


@pytest.mark.parametrize("family", ["qwen3-vl", "glm4v"])
def test_a_lone_frame_is_a_temporal_patch_of_itself_twice(family: str) -> None:
    processor, once = of_family(family), clip(1)
    twice = replace(once, **{n: torch.cat([getattr(once, n)] * 2) for n in ("frames", "timestamps_s", "frame_index")})
    one, two = (processor.build_inputs([QUESTION], [[video]]) for video in (once, twice))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_time_is_written_on_ernies_frames() -> None:
    video = replace(clip(3, 60, 90), fps=0.04)  # a frame every 25 seconds
    drawn, frames = of_family("ernie-4.5-vl", draw_on_frames=True), []
    for number, frame in enumerate(video.frames):
        picture = Image.fromarray(frame.permute(1, 2, 0).numpy())
        time = ("time: 00:00:00.00", "time: 00:00:25.00", "time: 00:00:50.00")[number]
        font = ImageFont.truetype(str(FONT), 6)
        ImageDraw.Draw(picture).text((0, 0), time, (0, 0, 0), font, stroke_width=0, stroke_fill=(255, 255, 255))
        frames.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    plain = of_family("ernie-4.5-vl").build_inputs([QUESTION], [[replace(video, frames=torch.stack(frames))]])
    came = drawn.build_inputs([QUESTION], [[video]])
    assert all(torch.equal(came[name], plain[name]) for name in plain)
    assert not torch.equal(torch.stack(frames), video.frames)


def test_ernie_without_its_font_is_refused_by_name() -> None:
    config = kits()["ernie-4.5-vl"]().build_model().config
    with pytest.raises(MediaError, match=r"no font file 'Roboto-Regular.ttf'.*draw_on_frames"):
        build_encoder(config, Settings(), None, "folder")


@pytest.mark.parametrize("family", ["smolvlm2", "internvl3", "videollama3"])
def test_a_batch_of_unequal_videos_holds_its_rows_as_built_alone(family: str) -> None:
    processor, prompts, clips = of_family(family), [QUESTION, "where?"], [[clip(5)], [clip(2, seed=1)]]
    batch = processor.build_inputs(prompts, clips)
    for row, (prompt, videos) in enumerate(zip(prompts, clips, strict=True)):
        alone = processor.build_inputs([prompt], [videos])["input_ids"]
        assert torch.equal(batch["input_ids"][row, -alone.shape[1] :], alone[0])


def test_without_a_template_glms_video_still_stands_between_its_start_and_end() -> None:
    prompter = replace(of_family("glm4v").prompter, template=None)
    assert prompter.text(QUESTION, 1) == f"<|begin_of_video|><|video|><|end_of_video|>{QUESTION}"


def test_visual_tokens_in_a_question_are_refused() -> None:
    with pytest.raises(InputError, match="4 runs of visual tokens, but 5 tokens '<IMG_CONTEXT>'"):
        of_family("internvl3").build_inputs(["what is <IMG_CONTEXT>?"], [[clip()]])


def test_numbers_are_written_as_in_smolvlms_prompts() -> None:
    assert [in_words(n) for n in (0, 13, 20, 64, 100, 101, 768, 1000, 1100, 12_345)] == [
        *("zero", "thirteen", "twenty", "sixty-four", "one hundred", "one hundred and one"),
        *("seven hundred and sixty-eight", "one thousand", "one thousand, one hundred"),
        "twelve thousand, three hundred and forty-five",
    ]
