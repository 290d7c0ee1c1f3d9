"""The mini models' trainer: the same run whether interrupted or not, questions about what is left, blind drops."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from vidsieve.bundled.bundled_task import BundledTask
from vidsieve.bundled.seeds import rng_of
from vidsieve.bundled.shapes import LLAVA_ONEVISION_MINI, QWEN2_VL_MINI, ModelShape
from vidsieve.bundled.train import clips, long_run, pretrain
from vidsieve.bundled.train.augmentation import kept_tokens
from vidsieve.bundled.train.clips import DISC, FLASH, SIGN, ClipPool
from vidsieve.bundled.train.configs import build_model
from vidsieve.bundled.train.language import line_logits
from vidsieve.bundled.train.lines import question_ids
from vidsieve.bundled.train.long_run import LongRun
from vidsieve.bundled.train.marks import GLANCING_HEAD, Marks
from vidsieve.bundled.train.muon import Muon, orthogonalised
from vidsieve.bundled.train.package import save_package
from vidsieve.bundled.train.packed import frame_of, positions
from vidsieve.bundled.train.stages import Position, Sort, Stage
from vidsieve.bundled.train.vision import video_features
from vidsieve.bundled.train.watch import Watch, kept
from vidsieve.media import Clip, load_processor

STAGES = (
    Stage(Sort(4, 4), (Sort(3, 4),), {"static": 1.0}, 2, flashes=4, tokens=500),
    Stage(Sort(6, 4), (), {"jitter": 0.5, "cuts": 0.5}, 1 << 30, drop=0.5, tokens=500),
)


def _small(shape: ModelShape) -> ModelShape:
    return dataclasses.replace(shape, layers=3, side=64, groups=6)


QWEN, LLAVA = _small(QWEN2_VL_MINI), _small(LLAVA_ONEVISION_MINI)
EACH = pytest.mark.parametrize("shape", [QWEN, LLAVA], ids=lambda shape: shape.family)


@pytest.fixture(autouse=True)
def _small_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "BATCH", 2)
    monkeypatch.setattr(clips, "FIRST_CHUNKS", 2)
    monkeypatch.setattr(long_run, "WATCH_VIDEOS", 2)
    monkeypatch.setattr(long_run, "LAYER_VIDEOS", 2)


def _pool(shape: ModelShape, seed: int = 1) -> ClipPool:
    torch.manual_seed(0)
    return ClipPool(build_model(shape).eval(), shape, STAGES, seed)


@EACH
def test_a_killed_run_ends_in_the_same_weights(
    shape: ModelShape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: str, seed: int = 3) -> LongRun:
        return LongRun(shape, tmp_path / folder, seed=seed, stages=STAGES, committed=tmp_path / "none")

    monkeypatch.setattr(LongRun, "_look", lambda run, watch, step: None)
    whole, part = run("whole"), run("part")
    whole.vision(1)
    whole.language(5, watch_every=100)
    part.vision(1)
    monkeypatch.setattr("vidsieve.bundled.train.training_run.SAVE_EVERY_S", 0)
    losses, calls = part.losses, []

    def stop_at_fourth(batch: clips.LongBatch) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return losses(batch)

    monkeypatch.setattr(part, "losses", stop_at_fourth)
    with pytest.raises(KeyboardInterrupt):
        part.language(5, watch_every=100)
    resumed = run("part", seed=99)
    resumed.seed = 3
    resumed.vision(1)
    resumed.language(5, watch_every=100)
    assert resumed.position == whole.position
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


@EACH
def test_where_the_folder_is_gone_the_committed_weights_go_on(shape: ModelShape, tmp_path: Path) -> None:
    committed = tmp_path / "committed"
    first = LongRun(shape, tmp_path / "first", seed=3, stages=STAGES, committed=committed)
    first.vision(1)
    first.language(3, watch_every=100)
    path = LongRun(shape, tmp_path / "first", seed=3, stages=STAGES, committed=committed).commit()
    stored = load_file(path)
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    facts = json.loads(path.with_suffix(".json").read_text())
    assert (facts["seed"], facts["position"]["step"], facts["position"]["stage"]) == (3, 3, 1)
    assert set(facts["measured"]) >= {"static", "jitter", "cuts", "layers"}
    again = LongRun(shape, tmp_path / "again", seed=99, stages=STAGES, committed=committed)
    again.vision(1)
    assert again.position == first.position
    assert again.seed == 3
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight.bfloat16().float(), again.model.state_dict()[name]), name
    again.language(4, watch_every=100)
    assert again.position.step == 4
    # once the folder has a checkpoint of its own, that counts
    third = LongRun(shape, tmp_path / "again", seed=3, stages=STAGES, committed=committed)
    third.vision(1)
    third.language(4, watch_every=100)
    assert third.position.step == 4


@EACH
def test_a_step_is_the_same_data_every_time(shape: ModelShape) -> None:
    at = Position(step=7, stage=1, since=5, drawn={"6x4": 40})
    one, other = (_pool(shape).batch(dataclasses.replace(at, drawn=dict(at.drawn))) for _ in range(2))
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.lines.ids, other.lines.ids)
    later = _pool(shape).batch(dataclasses.replace(at, step=8, drawn=dict(at.drawn)))
    assert not torch.equal(one.lines.ids[0], later.lines.ids[0])


def test_clips_are_used_again_with_other_drops_and_make_way() -> None:
    pool, at = _pool(QWEN), Position(stage=1)
    made = pool._make
    calls: list[int] = []

    def count(stage: Stage, sort: Sort, rng: torch.Generator) -> list[clips.EncodedClip]:
        calls.append(1)
        return made(stage, sort, rng)

    pool._make = count  # type: ignore[method-assign]
    used = 0
    for step in range(60):
        at.step = step
        used += len(pool.batch(at).tokens)
    assert at.drawn == {"6x4": used}
    assert len(calls) * clips.CHUNK <= used / clips.REUSES + 3 * clips.CHUNK


def test_only_what_is_left_is_asked() -> None:
    pool, at = _pool(QWEN), Position(stage=1)
    dropped = 0
    for step in range(24):
        at.step = step
        batch = pool.batch(at)
        if batch.index.shape[1] == batch.sort.tokens:
            continue
        dropped += 1
        names = batch.lines.names
        for clip in range(len(batch.tokens)):
            roles = set(batch.role[clip].tolist())
            asked = {names[kind] for kind in batch.lines.kinds[clip].tolist() if kind >= 0}
            if FLASH not in roles:
                assert not asked & {"first_color", "last_color", "shape", "where", "order"}
            if SIGN not in roles:
                assert not asked & {"sign_where", "sign_shape"}
            if DISC not in roles:
                assert not asked & {"first_direction", "last_direction", "disc_color"}
    assert dropped > 4


def test_a_drop_never_looks_at_a_token() -> None:
    """The kept indices come from sizes and a seed alone."""
    for ratio in (0.05, 0.3):
        index = kept_tokens(3, 6, 16, rng_of("drop"), ratio=ratio)
        assert index.shape == (3, round(ratio * 96))
        assert torch.equal(index, kept_tokens(3, 6, 16, rng_of("drop"), ratio=ratio))
        assert bool((index.diff(dim=1) > 0).all())


def test_text_goes_on_after_the_picture_or_after_the_time() -> None:
    shape = QWEN2_VL_MINI
    model = build_model(QWEN)
    _, text = positions(model, shape, 32, 1, 3)
    _, late = positions(model, shape, 32, 1, 3, after_time=True)
    assert text[0].tolist() == [2 + 8, 2 + 9, 2 + 10]
    assert late[0].tolist() == [2 + 32, 2 + 33, 2 + 34]
    assert torch.equal(positions(model, shape, 4, 1, 3)[1], positions(model, shape, 4, 1, 3, after_time=True)[1])


@EACH
@torch.no_grad()
def test_leaving_a_layer_out_is_the_model_without_it(shape: ModelShape) -> None:
    torch.manual_seed(1)
    model = build_model(shape).eval()
    watch = Watch(model, shape, videos=2)
    exam = watch.exam("static")
    tokens = torch.stack([clip.tokens.flatten(0, 1) for clip in exam.clips])
    index = torch.arange(tokens.shape[1]).expand(2, -1)
    for layer in (0, 2):
        without = line_logits(model, shape, tokens, index, shape.groups, exam.lines.ids, without=layer)
        layers = model.model.language_model.layers
        model.model.language_model.layers = torch.nn.ModuleList([one for n, one in enumerate(layers) if n != layer])
        shorter = line_logits(model, shape, tokens, index, shape.groups, exam.lines.ids)
        model.model.language_model.layers = layers
        assert torch.allclose(without, shorter, atol=1e-5)
        assert not torch.allclose(without, line_logits(model, shape, tokens, index, shape.groups, exam.lines.ids))
    assert len(watch.layers("static", videos=2)) == shape.layers
    assert watch.accuracy("static", "random-25", videos=2).keys() >= {"all", "order"}


def test_the_watch_keeps_what_its_name_says() -> None:
    tokens = torch.zeros(1, 4, 8, 5)
    tokens[..., 0] = 1.0
    tokens[0, 2, 3] = torch.tensor([0.0, 1.0, 0, 0, 0])
    assert kept(tokens, "full", rng_of("a")).shape == (1, 32)
    assert kept(tokens, "random-25", rng_of("a")).shape == (1, 8)
    assert 2 * 8 + 3 in kept(tokens, "unlike-10", rng_of("a"))[0].tolist()


def test_a_stage_ends_when_its_worst_kinds_are_fluent_or_its_steps_are_over() -> None:
    slow, quick = Position(), Position()
    assert [slow.advance(STAGES, Sort(4, 4), {"order": 0.5}) for _ in range(3)] == [False, True, False]
    assert (slow.stage, slow.since) == (1, 1)
    long = (dataclasses.replace(STAGES[0], most_steps=10_000), STAGES[1])
    turned = [quick.advance(long, Sort(4, 4), {"order": 1.0, "shape": 1.0}) for _ in range(200)]
    assert turned.index(True) == 59
    larger = (long[0], dataclasses.replace(STAGES[1], main=Sort(6, 8)))
    turning = Position()  # in a small window directions are not waited for
    right = {"order": 1.0, "shape": 1.0, "first_direction": 0.2, "last_direction": 0.2}
    assert any(turning.advance(larger, Sort(4, 4), right) for _ in range(70))
    unsure = Position()
    right = {"order": 0.5, "first_color": 0.9, "where": 0.9, "shape": 1.0, "exist": 1.0}
    assert not any(unsure.advance(long, Sort(4, 4), right) for _ in range(200))


def test_the_optimizer_moves_every_direction_alike_and_learns() -> None:
    torch.manual_seed(0)
    wide = torch.randn(2, 12, 30) * torch.logspace(0, -1, 30)
    values = torch.linalg.svdvals(orthogonalised(wide))
    assert values.min() > 0.5
    assert values.max() < 1.3
    assert torch.allclose(orthogonalised(wide.mT), orthogonalised(wide).mT, atol=1e-4)
    target, matrix, bias = torch.randn(8, 6), torch.zeros(8, 6).requires_grad_(), torch.zeros(8).requires_grad_()
    inputs = torch.randn(64, 6)
    optimizer = Muon([matrix], [bias], rate=0.1, other_rate=0.05, decay=0.0)
    losses = []
    for step in range(150):
        optimizer.scale_rates(1 - step / 150)
        optimizer.zero_grad()
        loss = (inputs @ matrix.T + bias - inputs @ target.T - 0.5).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]


@pytest.mark.parametrize("shape", [QWEN2_VL_MINI, LLAVA_ONEVISION_MINI], ids=lambda shape: shape.family)
@torch.no_grad()
def test_a_packaged_model_says_what_training_scored(shape: ModelShape, tmp_path: Path) -> None:
    """`generate` on a file's worth of frames through the processor, against the trainer's packed pass."""
    torch.manual_seed(2)
    trained = build_model(shape).eval()
    save_package(trained, shape, tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    processor = load_processor(tmp_path, model.config, prefer_hf=False)
    frames = shape.frames // (1 if shape.family == "qwen2-vl" else 2)
    example = BundledTask("static", frame_count=frames, shape=shape).examples("search", 1)[0]
    assert example.frames is not None
    inputs = processor.build_inputs([example.question], [[Clip.from_frames(example.frames, fps=8)]])
    newline = int(shape.family == "llava-onevision")
    assert int((inputs["input_ids"] == model.config.video_token_id).sum()) == 2048 + newline
    said = model.generate(**inputs)[0, inputs["input_ids"].shape[1]]
    tokens = video_features(trained, example.frames[None]).flatten(1, 2)
    ids = torch.tensor([[question_ids(frame_of(trained).after, example.question)]])
    index = torch.arange(2048)[None]
    assert int(line_logits(trained, shape, tokens, index, shape.groups, ids)[0, 0, -1].argmax()) == int(said)


def test_the_guide_is_content_where_each_kind_is_read_in_its_layer_alone() -> None:
    shape = dataclasses.replace(QWEN, layers=12)
    batch = dataclasses.replace(_pool(QWEN).batch(Position()), guided=True)
    marks, lines = Marks(shape), batch.lines
    assert sorted(marks.read_in(kind) for kind in shape.kinds) == list(range(1, 12))
    second = torch.where(lines.about[..., 1] == 0, lines.about[..., 0], lines.about[..., 1])
    heads = [batch.shown[:, None] == which[..., None] for which in (lines.about[..., 0], second)]
    ideal = torch.stack([*heads, heads[0] & False, heads[0] & False], dim=1).float()
    ideal = ideal / ideal.sum(-1, keepdim=True).clamp(min=1)
    own = torch.tensor([marks.read_in(name) for name in lines.names])[lines.kinds]
    probe = marks.probe(batch)

    def losses(shift: int, flip: bool = False, early: float = 0.0, glance: float = 0.0) -> tuple[float, float]:
        for layer in probe.attention:
            at = (own == layer + shift)[:, None, :, None]
            probe.attention[layer] = (ideal[:, [1, 0, 2, 3]] if flip else ideal) * at
            probe.attention[layer][:, GLANCING_HEAD] = glance * ideal[:, 0]
            probe.earlier[layer] = early * (own == layer + 1)[:, None].expand(-1, 4, -1).float()
            probe.earlier[layer][:, GLANCING_HEAD] = glance
        guide, short = marks._guide(probe, batch)
        return float(guide), float(short)

    def guide(shift: int, flip: bool = False, early: float = 0.0) -> float:
        return losses(shift, flip, early)[0]

    assert guide(0) < 1e-2
    assert guide(0, flip=True) > guide(0) + 0.05  # of two things each head has its own
    assert guide(1) > 2  # read in the layer before
    assert guide(0, early=0.9) > guide(0) + 1  # an earlier word reads it in the layer before
    assert sorted(probe.attention) == list(range(1, 12))
    # a little attention of one head in every layer, of earlier words too, is asked for and costs nothing; more does
    assert losses(0, glance=0.15) == pytest.approx((guide(0), 0.0), abs=1e-6)
    assert losses(0)[1] > losses(0, glance=0.01)[1] > losses(0, glance=0.1)[1] > 0
    assert losses(0, glance=0.5)[0] > guide(0) + 1


def test_what_earlier_words_see_is_the_most_that_any_place_before_the_asked_one_does() -> None:
    batch = dataclasses.replace(_pool(QWEN).batch(Position()), guided=True)
    marks, model = Marks(QWEN), build_model(QWEN).eval()

    def seen(asked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        probe = marks.probe(batch)
        assert probe.evidence is not None
        probe.asked, evidence = asked, probe.evidence
        line_logits(model, QWEN, batch.tokens, batch.index, batch.sort.groups, batch.lines.ids, probe=probe)
        return (probe.attention[1] * evidence[:, None]).sum(-1), probe.earlier[1]

    with torch.no_grad():
        asked = batch.lines.first_asked
        shares = torch.stack([seen(torch.full_like(asked, place))[0] for place in range(int(asked.max()))])
        before = torch.arange(len(shares))[:, None, None, None] < asked[:, None]
        assert torch.allclose(seen(asked)[1], shares.masked_fill(~before, 0).amax(0), atol=1e-6)
    assert shares.max() > 0.01
