"""Less video on the workbench: whole frames, the processor's own resizing, tokens counted, nothing mixed."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from vidsieve import load_policy
from vidsieve.framework.errors import UsageError
from vidsieve.framework.registry import default
from vidsieve.framework.task import Example
from vidsieve.harness.data.clip_reader import ClipReader
from vidsieve.harness.data.user_data import LabelledData
from vidsieve.harness.model_bench import Workbench
from vidsieve.harness.model_choice import choose
from vidsieve.harness.model_loading import load
from vidsieve.harness.setup import Setup
from vidsieve.media import read_video, write_video
from vidsieve.tuner.protocol import Kind, SmallerInput

FAMILIES = ("qwen2-vl-tiny", "llava-onevision-tiny")
MakeBench = Callable[..., Workbench]


def frames(ratio: float) -> SmallerInput:
    return SmallerInput(kind="frames", ratio=ratio)


def pixels(ratio: float) -> SmallerInput:
    return SmallerInput(kind="pixels", ratio=ratio)


@pytest.fixture
def examples(dataset: Path) -> tuple[Example, ...]:
    return LabelledData(dataset).all


@pytest.fixture
def make_bench(models: Path, examples: tuple[Example, ...]) -> MakeBench:
    def make(
        family: str = FAMILIES[0], metric: str = "accuracy", of: Sequence[Example] = examples, **options: object
    ) -> Workbench:
        sampled = {} if "fps" in options else {"frames": 8}
        setup = Setup(**{"model": str(models / family), "max_new_tokens": 3, **sampled, **options})  # type: ignore[arg-type]
        loaded = load(choose(setup.model, None, default()), setup, default())
        return Workbench(loaded, setup, metric, of)

    return make


def in_memory(count: int, name: str, size: int = 96) -> Example:
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(7)).to(torch.uint8)
    question = "did a disc flash ? yes or no ?"
    return Example(id=name, group=name, question=question, options=("yes", "no"), answer="yes", frames=pixels, fps=8.0)


def shares(bench: Workbench, intervention: SmallerInput, examples: Sequence[Example]) -> list[float | None]:
    return [outcome.retention_ratio for outcome in bench.score(intervention, examples)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("metric", ["accuracy", "agreement"])
def test_the_whole_input_gives_exactly_the_uncompressed_outcomes(
    make_bench: MakeBench, examples: tuple[Example, ...], family: str, metric: str
) -> None:
    bench = make_bench(family, metric)
    base = list(bench.score(None, examples[:6]))
    for kind in sorted(bench.smaller):
        assert list(bench.score(SmallerInput(kind=kind, ratio=1.0), examples[:6])) == base  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_smaller_input_is_what_the_smaller_workload_would_give(
    make_bench: MakeBench, examples: tuple[Example, ...], family: str
) -> None:
    """The same outcomes as a bench that was set up with fewer frames, or with a cap on the pixels."""
    bench = make_bench(family)
    direct = {frames(0.5): make_bench(family, frames=4)}
    if "pixels" in bench.smaller:
        direct[pixels(0.5)] = make_bench(family, max_pixels=96 * 96 // 2)
    for intervention, other in direct.items():
        ours, theirs = list(bench.score(intervention, examples[:6])), list(other.score(None, examples[:6]))
        assert [(o.prediction, o.p_gold) for o in ours] == [(o.prediction, o.p_gold) for o in theirs]
        full = [o.p_gold for o in bench.score(None, examples[:6])]
        assert [o.p_gold for o in ours] != full


def test_tokens_are_counted_against_the_full_input(make_bench: MakeBench, examples: tuple[Example, ...]) -> None:
    qwen, llava = (make_bench(family) for family in FAMILIES)
    # eight frames are four temporal patches: no odd count, and never less than one patch
    for ratio, share in ((0.01, 0.25), (0.25, 0.25), (0.4, 0.5), (0.75, 0.75), (0.99, 1.0)):
        assert shares(qwen, frames(ratio), examples[:2]) == [share] * 2
    for ratio, share in ((0.01, 1 / 8), (0.4, 3 / 8), (0.75, 0.75)):
        assert shares(llava, frames(ratio), examples[:2]) == [pytest.approx(share)] * 2
    # six by six tokens a frame; a quarter of the pixels is half of either side
    for ratio, side in ((0.25, 3), (0.5, 4), (25 / 36, 5), (0.0001, 1)):
        assert shares(qwen, pixels(ratio), examples[:2]) == [pytest.approx(side**2 / 36)] * 2


def test_lower_resolution_is_refused_where_every_frame_has_one_size(
    make_bench: MakeBench, examples: tuple[Example, ...]
) -> None:
    qwen, llava = (make_bench(family) for family in FAMILIES)
    assert qwen.smaller == {"frames", "pixels"}
    assert llava.smaller == {"frames"}
    with pytest.raises(UsageError, match="llava-onevision takes every frame at one size"):
        list(llava.score(pixels(0.5), examples[:1]))


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.5, float("nan")])
@pytest.mark.parametrize("kind", ["frames", "pixels"])
def test_a_ratio_that_is_none_is_refused(
    make_bench: MakeBench, examples: tuple[Example, ...], kind: Kind, ratio: float
) -> None:
    with pytest.raises(UsageError, match="must be above 0 and at most 1"):
        list(make_bench().score(SmallerInput(kind=kind, ratio=ratio), examples[:1]))


def test_nothing_of_a_smaller_input_stays_behind(make_bench: MakeBench, examples: tuple[Example, ...]) -> None:
    few = examples[:2]
    order = [frames(0.5), pixels(0.5), None, load_policy("vidcom2"), frames(0.5), None]
    bench, other = make_bench(), make_bench()
    alone = {each.hash: list(other.score(each, few)) for each in reversed(order) if each is not None}
    base = list(make_bench().score(None, few))
    for intervention in order:
        assert list(bench.score(intervention, few)) == (alone[intervention.hash] if intervention else base)
        assert bench.timed(intervention, 0, "ttft")["ttft_ms"] > 0
    shape = other.clip_shape(0)
    bench.timed(frames(0.25), 0, "ttft")
    assert bench.clip_shape(0) == shape


def test_what_is_timed_is_the_smaller_input(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench()
    seen: list[tuple[int, ...]] = []
    original = type(bench.loaded.model).generate

    def generate(self: object, **options: torch.Tensor) -> object:
        seen.append(tuple(options["video_grid_thw"][0].tolist()))
        return original(self, **options)

    monkeypatch.setattr(type(bench.loaded.model), "generate", generate)
    for intervention, grid in ((None, (4, 12, 12)), (frames(0.5), (2, 12, 12)), (pixels(0.25), (4, 6, 6))):
        for metric in ("ttft", "e2e"):
            seen.clear()
            parts = bench.timed(intervention, 0, metric)  # type: ignore[arg-type]
            assert seen == [grid]
            assert parts["compress_ms"] == 0


def test_frames_are_taken_evenly_from_the_file_and_from_memory(
    make_bench: MakeBench, examples: tuple[Example, ...]
) -> None:
    bench = make_bench()
    runner = bench._timer._runners.of(frames(0.5))
    video = examples[0].video
    assert video is not None
    assert torch.equal(runner.reader.clip(examples[0]).frames, read_video(video, frames=4).frames)
    thinned = runner.reader.clip(in_memory(16, "memory")).frames
    assert torch.equal(thinned, ClipReader(4, None).clip(in_memory(16, "memory")).frames)
    assert len(thinned) == 4


def test_with_frames_per_second_fewer_are_fewer_a_second(make_bench: MakeBench) -> None:
    clips = [in_memory(16, f"clip-{i}") for i in range(2)]
    bench = make_bench(of=clips, fps=8.0)
    assert bench.shape.frames == 8
    assert shares(bench, frames(0.5), clips) == [0.5, 0.5]
    assert shares(bench, frames(0.001), clips) == [1 / 8, 1 / 8]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_clip_of_two_frames_is_not_made_smaller_than_the_model_takes(make_bench: MakeBench, family: str) -> None:
    short = [in_memory(2, "short")]
    bench = make_bench(family, of=short)
    for ratio in (0.01, 0.2, 0.5, 0.9):
        (outcome,) = bench.score(frames(ratio), short)
        kept = min(2, max(1, round(8 * ratio))) / 2 if family != FAMILIES[0] else 1.0
        assert outcome.retention_ratio == kept
        assert bench.timed(frames(ratio), 0, "ttft")["ttft_ms"] > 0


def test_videos_of_many_sizes_share_one_cap(make_bench: MakeBench, tmp_path: Path) -> None:
    """Lower resolution is what one --max-pixels does: large frames shrink, frames below the cap do not grow."""
    sizes = {"wide": (64, 128), "small": (32, 32)}
    videos = []
    for name, (height, width) in sizes.items():
        picture = torch.randint(0, 256, (4, 3, height, width), generator=torch.Generator().manual_seed(1))
        write_video(tmp_path / f"{name}.mp4", picture.to(torch.uint8), fps=8)
        videos.append(
            Example(id=name, group=name, question="is it red ?", answer="yes", video=tmp_path / f"{name}.mp4")
        )
    bench = make_bench(of=videos, metric="agreement")
    for ratio in (0.25, 0.5, 0.9):
        both = list(bench.score(pixels(ratio), videos))
        assert all(o.retention_ratio is not None and 0 < o.retention_ratio <= 1 for o in both)
        assert both[0].retention_ratio is not None and both[0].retention_ratio < 1
