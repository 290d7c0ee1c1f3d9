"""The trainer computes what transformers computes, sees what the processors make, and goes on where it stopped."""

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsieve.bundled.questions import every_question, facts
from vidsieve.bundled.render import render
from vidsieve.bundled.scene import RUNGS, Scene, sample_scenes
from vidsieve.bundled.seeds import rng_of
from vidsieve.bundled.shapes import LLAVA_ONEVISION_TINY, QWEN2_VL_TINY, TINY, ModelShape
from vidsieve.bundled.train import batches, pretrain
from vidsieve.bundled.train.augmentation import kept_tokens, through_codec
from vidsieve.bundled.train.batches import frames_for, make_batch
from vidsieve.bundled.train.configs import build_model
from vidsieve.bundled.train.language import line_logits
from vidsieve.bundled.train.lines import LENGTH, evaluation_lines, question_ids, training_lines
from vidsieve.bundled.train.packed import frame_of, positions
from vidsieve.bundled.train.training_run import Run
from vidsieve.bundled.train.vision import normalise, patches, video_features
from vidsieve.media import read_video, write_video
from vidsieve.media.pixels import grid_patches
from vidsieve.media.pixels import normalise as normalised_pixels

EACH = pytest.mark.parametrize("shape", [QWEN2_VL_TINY, LLAVA_ONEVISION_TINY], ids=lambda shape: shape.name)


def _scene(rung: str = "static", videos: int = 2) -> tuple[Scene, torch.Tensor]:
    rng = rng_of("test", rung)
    scene = sample_scenes(TINY, next(r for r in RUNGS if r == rung), videos, rng)
    return scene, render(scene, rng)


def test_training_pixels_are_those_of_the_media_room() -> None:
    _, frames = _scene()
    ours = patches(normalise(frames))
    theirs, grid = grid_patches(frames[1], patch_size=8)
    assert torch.equal(ours[1].flatten(0, 1), theirs)
    assert grid.tolist() == [8, 12, 12]
    assert torch.equal(normalise(frames)[1], normalised_pixels(frames[1]))


@EACH
@torch.no_grad()
def test_batched_vision_equals_the_model(shape: ModelShape) -> None:
    model = build_model(shape).eval()
    frames = frames_for(model, _scene()[1])
    ours = video_features(model, frames).flatten(1, 2)
    if shape.family == "qwen2-vl":
        rows = patches(normalise(frames)).flatten(0, 2)
        theirs = torch.stack(list(model.model.get_video_features(rows, torch.tensor([[8, 12, 12]] * 2)).pooler_output))
    else:
        theirs = model.model.get_video_features(normalise(frames)).pooler_output[:, :-1]
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert theirs.abs().mean() > 0.01


@EACH
@pytest.mark.parametrize("ratio", [1.0, 0.3])
@torch.no_grad()
def test_packed_lines_equal_the_language_model_on_each_prompt_alone(shape: ModelShape, ratio: float) -> None:
    model = build_model(shape).eval()
    scene, pixels = _scene()
    tokens = video_features(model, frames_for(model, pixels)).flatten(1, 2)
    total = tokens.shape[1]
    index = torch.stack([torch.randperm(total)[: int(ratio * total)].sort().values for _ in tokens])
    kept = tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
    frame, words = frame_of(model), model.get_input_embeddings()
    asked = [list(every_question(clip))[:5] for clip in facts(scene)]
    packed = line_logits(model, shape, kept, index, 8, evaluation_lines(shape, asked, frame.after).ids)
    video_at, text_at = positions(model, shape, 8, 1, LENGTH)
    for line, one in enumerate(asked[1]):
        ids = question_ids(frame.after, one.question)
        newline = [model.model.image_newline[None]] if frame.newline else []
        rows = torch.cat([words(torch.tensor(frame.before)), kept[1], *newline, words(torch.tensor(ids))])
        before = len(frame.before)
        at = [torch.arange(before), before + index[1], torch.arange(before + total, video_at.shape[1])]
        places = torch.cat([video_at[:, torch.cat(at)], text_at[:, : len(ids)]], dim=1)
        hidden = model.model.language_model(
            inputs_embeds=rows[None],
            position_ids=places[:, None] if len(places) == 3 else places,
            attention_mask=torch.ones(1, len(rows), dtype=torch.long),
        ).last_hidden_state
        alone = model.lm_head(hidden)[0, -1]
        assert torch.allclose(packed[1, line, len(ids) - 1], alone, atol=1e-4)


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_dropped_tokens_leave_distinct_ascending_ones(groups: int, tokens: int, seed: int) -> None:
    kept = kept_tokens(3, groups, tokens, rng_of(seed))
    assert 1 <= kept.shape[1] <= groups * tokens
    assert bool((kept.diff(dim=1) > 0).all())
    assert int(kept.min()) >= 0
    assert int(kept.max()) < groups * tokens


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("groups", [2, 3, 4, 6, 8])
def test_every_line_fits_and_ends_in_an_answer(rung: str, groups: int) -> None:
    rng = rng_of("lines", rung, groups)
    scene = sample_scenes(TINY, next(r for r in RUNGS if r == rung), 8, rng, groups=groups, flashes=(2, 6))
    lines = training_lines(TINY, facts(scene), frame_of(build_model(TINY)).after, random.Random(0))
    used = lines.kinds >= 0
    assert lines.ids.shape[-1] == LENGTH
    assert bool(((lines.targets >= 0).any(-1) == used).all())
    assert bool(((lines.weights > 0) == (lines.targets >= 0)).all())


@pytest.mark.parametrize("groups", [4, 6, 8])
def test_a_sign_is_seen_longer_than_any_flash(groups: int) -> None:
    scene = sample_scenes(TINY, "cuts", 200, rng_of("cuts", groups), groups=groups)
    signs, flashes = scene.signs, scene.flashes
    assert int((signs.last - signs.first)[signs.present].min()) >= 1
    assert bool((flashes.first == flashes.last).all())
    assert int(flashes.first.min()) >= 1
    assert int(scene.setting.max()) >= 1
    assert int(signs.cell.max()) < TINY.places


def test_the_stand_in_codec_is_about_as_lossy_as_h264(tmp_path: Path) -> None:
    _, frames = _scene("jitter", videos=8)
    cheap = through_codec(frames, rng_of("codec"))
    errors = []
    for number, clip in enumerate(frames[:4]):
        path = write_video(tmp_path / f"{number}.mp4", clip, 8)
        errors.append((read_video(path, frames=16).frames.float() - clip.float()).abs().mean())
    real = torch.stack(errors).mean()
    ours = (cheap.float() - frames.float()).abs().mean()
    assert 0.5 * real < ours < 2 * real


@pytest.fixture
def _tiny_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "BATCH", 2)
    monkeypatch.setattr(batches, "VIDEOS_PER_BATCH", 1)
    monkeypatch.setattr("vidsieve.bundled.train.training_run.evaluate", lambda model, shape, rung: {})


@pytest.mark.usefixtures("_tiny_batches")
def test_an_interrupted_run_ends_in_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Run(LLAVA_ONEVISION_TINY, tmp_path / "whole", seed=3)
    whole.vision(2)
    whole.language(4, watch_every=100)
    part = Run(LLAVA_ONEVISION_TINY, tmp_path / "part", seed=3)
    part.vision(2)
    update, calls = part._update, []

    def stop_at_third(*args: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        update(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(part, "_update", stop_at_third)
    monkeypatch.setattr("vidsieve.bundled.train.training_run.SAVE_EVERY_S", 0)
    with pytest.raises(KeyboardInterrupt):
        part.language(4, watch_every=100)
    resumed = Run(LLAVA_ONEVISION_TINY, tmp_path / "part", seed=99)
    resumed.seed = 3
    resumed.vision(2)
    resumed.language(4, watch_every=100)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


@pytest.mark.usefixtures("_tiny_batches")
def test_a_training_step_is_the_same_data_every_time() -> None:
    model = build_model(TINY)
    one, other = (make_batch(model, TINY, 1, 900, 1000) for _ in range(2))
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.lines.ids, other.lines.ids)
    assert not torch.equal(one.lines.ids, make_batch(model, TINY, 1, 901, 1000).lines.ids)
