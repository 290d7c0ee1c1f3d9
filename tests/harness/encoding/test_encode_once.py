"""A bench that encodes each clip once: same outcomes, fewer passes and decodings, and never another clip's features."""

import os
import shutil
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch

from vidsieve import load_policy
from vidsieve.framework.errors import InputError, MediaError, UsageError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.registry import default
from vidsieve.framework.task import Example
from vidsieve.harness.data.user_data import LabelledData
from vidsieve.harness.encoding import content_keys, feature_store
from vidsieve.harness.evaluation import evaluate
from vidsieve.harness.model_bench import Workbench
from vidsieve.harness.model_choice import choose
from vidsieve.harness.model_loading import adopt, load
from vidsieve.harness.session import Session
from vidsieve.harness.setup import Setup
from vidsieve.media import video as video_files
from vidsieve.media import write_video
from vidsieve.tuner.protocol import SmallerInput

MakeBench = Callable[..., Workbench]
FAMILIES = ("qwen2-vl-tiny", "llava-onevision-tiny")
ASKED = ("vidcom2", "visionzip", "pixel-change", "fastvid", "fastv", "sttm")
"""Policies that ask for features alone, for signals, for pixels before the tower, and inside the language model."""


class Counts:
    """Passes of vision towers and files that were decoded."""

    def __init__(self) -> None:
        self.passes = self.decoded = 0

    def count_pass(self) -> None:
        self.passes += 1

    def reset(self) -> None:
        self.passes = self.decoded = 0


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    found, read = Counts(), video_files.read_video

    @wraps(read)
    def reading(*args: Any, **kwargs: Any) -> Any:
        found.decoded += 1
        return read(*args, **kwargs)

    monkeypatch.setattr(video_files, "read_video", reading)
    return found


@pytest.fixture
def examples(dataset: Path) -> tuple[Example, ...]:
    return LabelledData(dataset).all


@pytest.fixture
def make_bench(models: Path, examples: tuple[Example, ...], counts: Counts) -> MakeBench:
    def make(family: str = FAMILIES[0], of: Sequence[Example] = examples, **options: Any) -> Workbench:
        # whole prompts take a clip's features once a question
        settings = {"max_new_tokens": 3, "frames": 4, "batch_size": 2, "whole_prompts": True}
        setup = Setup(**{"model": str(models / family), **settings, **options})
        return watched(Workbench(load(choose(setup.model, None, default()), setup, default()), setup, "accuracy", of))

    def watched(bench: Workbench) -> Workbench:
        base = bench.loaded.model.base_model
        tower = getattr(base, "visual", None) or base.vision_tower
        tower.register_forward_pre_hook(lambda *call: counts.count_pass())
        counts.reset()
        return bench

    return make


def policies() -> list[Policy]:
    loaded = [load_policy(name) for name in ASKED]
    return [p if p.retention_ratio is None else load_policy(p.name, retention_ratio=0.5) for p in loaded]


@pytest.mark.parametrize("family", FAMILIES)
def test_outcomes_are_those_of_encoding_every_time(
    make_bench: MakeBench, examples: tuple[Example, ...], family: str
) -> None:
    fewer = SmallerInput(kind="frames", ratio=0.5)
    every, once = make_bench(family, feature_store="off"), make_bench(family)
    asked = [*examples[:3], examples[-1]]
    expected = {each: list(every.score(each, asked)) for each in (None, *policies(), fewer)}
    for each, outcomes in [*expected.items(), (None, expected[None])]:
        assert list(once.score(each, asked)) == outcomes, each
    again = make_bench(family)  # from disk
    for each, outcomes in reversed(expected.items()):
        assert list(again.score(each, asked)) == outcomes, each
    assert again.encoding is not None and again.encoding.passes == 0
    assert every.encoding is None


def test_a_clip_seen_before_is_neither_decoded_nor_encoded_again(
    make_bench: MakeBench, examples: tuple[Example, ...], counts: Counts
) -> None:
    bench, clips = make_bench(), len({example.video for example in examples})
    assert clips < len(examples)
    list(bench.score(None, examples))
    assert (counts.passes, counts.decoded) == (clips, clips)
    counts.reset()
    list(bench.score(None, examples[::-1]))
    list(bench.score(load_policy("vidcom2"), examples))
    list(bench.score(load_policy("visionzip"), examples))
    assert (counts.passes, counts.decoded) == (0, 0)
    assert bench.encoding is not None
    assert bench.encoding.saved_passes >= 3 * len(examples)
    assert bench.encoding.saved_seconds > 0


def test_a_later_run_reads_what_an_earlier_one_left(
    make_bench: MakeBench, examples: tuple[Example, ...], counts: Counts
) -> None:
    list(make_bench().score(None, examples))
    later = make_bench()
    list(later.score(load_policy("visionzip"), examples))
    assert (counts.passes, counts.decoded) == (0, 0)
    assert later.encoding is not None
    assert (later.encoding.passes, later.encoding.saved_passes) == (0, len(examples))


def test_questions_about_one_clip_take_its_features_once(
    make_bench: MakeBench, examples: tuple[Example, ...], counts: Counts
) -> None:
    bench, clips = make_bench(whole_prompts=False), len({example.video for example in examples})
    for name, saved in ((None, 0), ("vidcom2", clips), ("visionzip", 2 * clips)):
        list(bench.score(None if name is None else load_policy(name), examples))
        assert (counts.passes, counts.decoded) == (clips, clips)
        assert bench.encoding is not None and bench.encoding.saved_passes == saved


def test_timing_encodes_every_time(make_bench: MakeBench, examples: tuple[Example, ...], counts: Counts) -> None:
    bench = make_bench()
    list(bench.score(None, examples))
    counts.reset()
    for _ in range(2):
        parts = bench.timed(None, 0, "ttft")
        assert parts["vision_ms"] > 0
    assert counts.passes == 2
    assert bench.timed(load_policy("vidcom2"), 0, "e2e")["video_ms"] > 0
    assert (counts.passes, counts.decoded > 0) == (3, True)


def test_a_file_that_changed_is_read_anew(
    make_bench: MakeBench, examples: tuple[Example, ...], tmp_path: Path, counts: Counts
) -> None:
    first, second = (
        Path(str(e.video)) for e in (examples[0], next(e for e in examples if e.group != examples[0].group))
    )
    clip = shutil.copy(first, tmp_path / "clip.mp4")
    asked = [Example(id="a", group="a", question=examples[0].question, options=("yes", "no"), answer="yes", video=clip)]
    bench, every = make_bench(), make_bench(feature_store="off")
    before = list(bench.score(None, asked))
    shutil.copy(second, clip)
    os.utime(clip, ns=(first.stat().st_mtime_ns, first.stat().st_mtime_ns))  # as old as the file before it
    after = list(bench.score(None, asked))
    assert after == list(every.score(None, asked))
    assert after[0].p_gold != before[0].p_gold
    shutil.copy(first, clip)
    assert list(bench.score(None, asked)) == before


def test_frames_in_memory_are_known_by_their_pixels(make_bench: MakeBench, counts: Counts) -> None:
    def example(seed: int) -> Example:
        frames = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
        return Example(
            id="same", group="g", question="yes or no ?", options=("yes", "no"), answer="yes", frames=frames, fps=4.0
        )

    bench = make_bench(of=[example(0)])
    first = list(bench.score(None, [example(0)]))
    counts.reset()
    assert list(bench.score(None, [example(0)])) == first
    assert counts.passes == 0
    assert next(iter(bench.score(None, [example(1)]))).p_gold != first[0].p_gold
    assert counts.passes == 1


def test_other_weights_dtype_or_frames_share_nothing(
    make_bench: MakeBench, models: Path, examples: tuple[Example, ...], counts: Counts, tmp_path: Path
) -> None:
    list(make_bench().score(None, (examples[0], examples[-1])))
    changed = tmp_path / "changed"
    setup = Setup(model=str(models / FAMILIES[0]))
    model = load(choose(setup.model, None, default()), setup, default()).model
    shutil.copytree(models / FAMILIES[0], changed)
    with torch.no_grad():
        next(model.base_model.visual.merger.parameters()).view(-1)[0] += 1e-3
    model.save_pretrained(changed)
    for options in ({"model": str(changed)}, {"dtype": "bfloat16"}, {"frames": 2}, {"attn": "eager"}, {"threads": 2}):
        bench = make_bench(**options)
        list(bench.score(None, (examples[0], examples[-1])))
        assert bench.encoding is not None
        assert bench.encoding.saved_passes == 0, options
    bench = make_bench()
    list(bench.score(None, (examples[0], examples[-1])))
    assert counts.passes == 0


def test_a_signal_asked_for_later_is_taken_then_and_kept(
    make_bench: MakeBench, examples: tuple[Example, ...], counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidsieve.harness.encoding import clip_encodings

    monkeypatch.setattr(clip_encodings, "AT_ONCE", frozenset())
    expected = list(make_bench(feature_store="off").score(load_policy("visionzip"), examples[:3]))
    bench = make_bench()
    list(bench.score(None, examples[:3]))
    counts.reset()
    assert list(bench.score(load_policy("visionzip"), examples[:3])) == expected
    assert counts.passes > 0
    counts.reset()
    assert list(bench.score(load_policy("visionzip"), examples[:3])) == expected
    assert list(make_bench().score(load_policy("visionzip"), examples[:3])) == expected
    assert counts.passes == 0


def test_damaged_files_are_encoded_anew(make_bench: MakeBench, examples: tuple[Example, ...], tmp_path: Path) -> None:
    store = tmp_path / "store"
    expected = list(make_bench(feature_store=str(store)).score(None, examples[:6]))
    for number, file in enumerate(sorted(store.iterdir())):
        payload = file.read_bytes()
        file.write_bytes([b"", payload[: len(payload) // 2], payload[:-1] + b"\x55", b"{}" * 100][number % 4])
    bench = make_bench(feature_store=str(store))
    assert list(bench.score(None, examples[:6])) == expected
    assert bench.encoding is not None and bench.encoding.passes > 0


@pytest.mark.parametrize("what", ["format", "facts", "tensor"])
def test_files_of_another_format_are_encoded_anew(
    make_bench: MakeBench, examples: tuple[Example, ...], what: str
) -> None:
    first = make_bench()
    expected = list(first.score(None, (examples[0], examples[-1])))
    folder = first._store.folder  # type: ignore[union-attr]
    assert folder is not None
    read, write = folder.read, type(folder).write

    for file in folder.folder.iterdir():
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            key = opened.metadata()["key"]
        found = read(key)
        assert found is not None
        tensors, notes = found
        if what == "tensor":
            del tensors["rows"]
        else:
            notes[what] = "99" if what == "format" else "{}"
        write(folder, key, tensors, notes)
    bench = make_bench()
    assert list(bench.score(None, (examples[0], examples[-1]))) == expected
    assert bench.encoding is not None and bench.encoding.saved_passes == 0


def test_a_store_that_holds_hardly_anything_gives_the_same(
    make_bench: MakeBench, examples: tuple[Example, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_store.FeatureStore.__init__, "__defaults__", (None, 10))  # ten bytes of memory
    expected = list(make_bench(feature_store="off").score(load_policy("visionzip"), examples[:4]))
    for gigabytes in (1e-9, 1e-4):
        bench = make_bench(feature_store_gb=gigabytes)
        for _ in range(2):
            assert list(bench.score(load_policy("visionzip"), examples[:4])) == expected


def test_a_disk_that_cannot_be_written_to_is_said_once_and_memory_serves(
    make_bench: MakeBench, examples: tuple[Example, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VIDSIEVE_CACHE", str(tmp_path / "file"))
    bench = make_bench()
    for _ in range(2):
        list(bench.score(None, examples))
    (told,) = bench.notices
    assert told.startswith("feature store ") and "cannot be written to" in told and "for this run only" in told
    assert bench.encoding is not None and bench.encoding.saved_passes >= len(examples)


def test_a_named_folder_that_is_none_is_refused(make_bench: MakeBench, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"`feature_store`.*is a file"):
        make_bench(feature_store=str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"`feature_store` https:.*address"):
        make_bench(feature_store="https://host/store")
    with pytest.raises(UsageError, match="feature_store_gb"):
        Setup(feature_store_gb=0)


def test_a_model_of_the_callers_leaves_nothing_on_disk(
    models: Path, examples: tuple[Example, ...], tmp_path: Path
) -> None:
    setup = Setup(frames=4, whole_prompts=True)
    named = Setup(model=str(models / FAMILIES[0]), frames=4)
    loaded = load(choose(named.model, None, default()), named, default())
    bench = Workbench(adopt(loaded.model, loaded.processor, setup), setup, "accuracy", examples)
    list(bench.score(None, examples[:2]))
    list(bench.score(None, examples[:2]))
    assert bench.encoding is not None and bench.encoding.saved_passes >= 2
    assert not feature_store.default_folder().exists()


def test_weights_of_the_language_model_do_not_decide_the_key(models: Path) -> None:
    setup = Setup(model=str(models / FAMILIES[0]))
    loaded = load(choose(setup.model, None, default()), setup, default())
    before = content_keys.model_digest(loaded)
    with torch.no_grad():
        loaded.model.get_decoder().layers[0].mlp.down_proj.weight += 1
    assert content_keys.model_digest(loaded) == before
    with torch.no_grad():
        loaded.model.base_model.visual.blocks[0].attn.qkv.bias += 1
    assert content_keys.model_digest(loaded) != before


@pytest.mark.parametrize("store", ["off", None])
def test_a_clip_beyond_the_models_positions_is_refused_before_the_tower_runs(
    make_bench: MakeBench, examples: tuple[Example, ...], counts: Counts, store: str | None
) -> None:
    bench = make_bench(FAMILIES[1], feature_store=store)
    counts.reset()
    bench.loaded.model.config.get_text_config().max_position_embeddings = 40
    asked = examples[-1:]
    with pytest.raises(InputError, match=rf"{asked[0].video}: the prompt reaches position .* end at 39"):
        list(bench.score(None, asked))
    assert counts.passes == 0


@pytest.mark.parametrize("store", ["off", None])
def test_what_is_refused_is_named_by_its_file(
    make_bench: MakeBench, examples: tuple[Example, ...], tmp_path: Path, store: str | None
) -> None:
    bench, clip = make_bench(feature_store=store), examples[0].video
    twice = f"{2 * bench.runner.processor.prompter.video_token} yes or no ?"
    forged = Example(id="f", group="f", question=twice, answer="yes", video=clip)
    with pytest.raises(MediaError, match=f"{clip}: prompt: "):
        list(bench.score(None, [examples[-1], forged]))
    thin = tmp_path / "thin.mp4"  # no model takes a side more than 200 times the other
    write_video(thin, torch.zeros(4, 3, 2, 512, dtype=torch.uint8), 4.0)
    odd = Example(id="t", group="t", question="yes or no ?", options=("yes", "no"), answer="yes", video=thin)
    with pytest.raises(MediaError, match=f"{thin}: "):
        list(bench.score(None, [examples[-1], odd]))


def test_eval_tells_what_was_spared(make_bench: MakeBench, examples: tuple[Example, ...], fake_time: None) -> None:
    bench = make_bench()
    session: Any = Session(
        setup=Setup(),
        task=LabelledData(Path(str(examples[0].video)).parent / "examples.jsonl"),
        loaded=bench.loaded,
        bench=bench,
    )
    told = evaluate(session, load_policy("vidcom2"), examples[:4])["encoding"]
    assert told["saved_passes"] >= 4 and told["passes"] <= 4
