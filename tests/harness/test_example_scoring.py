"""Scores beside an independent computation: plain forwards of the model, no `generate`, no batches."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vidsieve import load_policy
from vidsieve.framework.errors import DataError
from vidsieve.framework.registry import default
from vidsieve.framework.task import Example, Outcome
from vidsieve.harness.answer_options import INSTRUCTION, choice_ids, normalised, scored_prompt
from vidsieve.harness.data.clip_reader import ClipReader, FrameCache
from vidsieve.harness.data.user_data import LabelledData
from vidsieve.harness.model_bench import Workbench
from vidsieve.harness.model_choice import choose
from vidsieve.harness.model_loading import load
from vidsieve.harness.setup import Setup
from vidsieve.tuner.protocol import Bench

MakeBench = Callable[..., Workbench]


@pytest.fixture
def examples(dataset: Path) -> tuple[Example, ...]:
    return LabelledData(dataset).all


@pytest.fixture
def make_bench(qwen: Path, examples: tuple[Example, ...]) -> MakeBench:
    def make(metric: str = "accuracy", model: Path = qwen, **options: object) -> Workbench:
        setup = Setup(**{"model": str(model), "max_new_tokens": 3, "frames": 4, **options})  # type: ignore[arg-type]
        loaded = load(choose(setup.model, None, default()), setup, default())
        return Workbench(loaded, setup, metric, examples)

    return make


def log_likelihood(bench: Workbench, example: Example, answer: list[int]) -> float:
    """Teacher forcing in one plain forward of one row."""
    inputs = bench.runner.inputs([example])
    prompt = inputs["input_ids"].shape[1]
    extra = torch.tensor([answer])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], extra], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(extra)], dim=1)
    with torch.no_grad():
        logits = bench.loaded.model(**inputs).logits[0, prompt - 1 : -1].float()
    return float(logits.log_softmax(-1).gather(1, extra.T).sum())


def test_p_gold_is_the_softmax_over_first_tokens_of_a_plain_forward(
    make_bench: MakeBench, examples: tuple[Example, ...]
) -> None:
    bench = make_bench()
    outcomes = list(bench.score(None, examples[:4]))
    for example, outcome in zip(examples[:4], outcomes, strict=True):
        ids = choice_ids(bench.runner.processor.prompter, bench.runner.prompt(example))
        scores = torch.tensor([log_likelihood(bench, example, option[:1]) for option in ids])
        gold = example.options.index(example.answer)  # type: ignore[union-attr, arg-type]
        assert outcome.p_gold == pytest.approx(float(scores.softmax(0)[gold]), abs=1e-5)
        assert outcome.prediction == example.options[int(scores.argmax())]  # type: ignore[index]
        assert outcome.correct == float(int(scores.argmax()) == gold)
        assert outcome.retention_ratio == 1.0


def test_options_that_begin_alike_are_scored_to_their_end(make_bench: MakeBench, examples: tuple[Example, ...]) -> None:
    bench = make_bench()
    # named in the question, so that they are not lettered; "red" is the beginning of "red ring"
    question = "is the flash red or red ring or blue ?"
    asked = [
        Example(id=f"e{i}", group=e.group, question=question, options=options, answer="red", video=e.video)
        for i, (e, options) in enumerate(
            [(examples[0], ("red", "red ring", "blue")), (examples[4], ("red ring", "red"))]
        )
    ]
    outcomes = list(bench.score(None, asked))
    for example, outcome in zip(asked, outcomes, strict=True):
        ids = choice_ids(bench.runner.processor.prompter, bench.runner.prompt(example))
        end = bench.runner.end_id
        assert end is not None
        scores = torch.tensor([log_likelihood(bench, example, [*option, end]) for option in ids])
        gold = example.options.index("red")  # type: ignore[union-attr]
        assert outcome.p_gold == pytest.approx(float(scores.softmax(0)[gold]), abs=1e-4)


def assert_alike(ones: list[Outcome], others: list[Outcome]) -> None:
    for one, other in zip(ones, others, strict=True):
        assert (one.example_id, one.prediction, one.retention_ratio) == (
            other.example_id,
            other.prediction,
            other.retention_ratio,
        )
        assert one.p_gold == pytest.approx(other.p_gold, abs=1e-5)


@pytest.mark.parametrize("name", [None, "vidcom2", "random"])
def test_a_batch_gives_what_its_rows_give_alone(
    make_bench: MakeBench, examples: tuple[Example, ...], name: str | None
) -> None:
    policy = load_policy(name) if name else None
    mixed = [*examples[:2], Example(id="open", group="g", question="why ?", answer="red", video=examples[5].video)]
    mixed.append(examples[7])
    alone = list(make_bench().score(policy, mixed))
    together = list(make_bench(batch_size=4).score(policy, mixed))
    assert_alike(alone, together)
    assert [o.example_id for o in together] == [e.id for e in mixed]


@pytest.mark.parametrize("family", ["qwen2-vl-tiny", "llava-onevision-tiny"])
def test_a_policy_attains_its_ratio_on_every_row(
    make_bench: MakeBench, models: Path, examples: tuple[Example, ...], family: str
) -> None:
    bench = make_bench(model=models / family, frames=8)
    policy = load_policy("vidcom2", retention_ratio=0.25)
    expected = max(1, int(bench.shape.total * 0.25)) / bench.shape.total
    assert [o.retention_ratio for o in bench.score(policy, examples[:3])] == [pytest.approx(expected)] * 3


def test_open_answers_are_compared_after_normalisation(make_bench: MakeBench, examples: tuple[Example, ...]) -> None:
    bench = make_bench()
    first = examples[0]
    written = bench.answer(None, Example(id="a", group="g", question=first.question, video=first.video))[0]
    right, wrong = (
        Example(id=n, group="g", question=first.question, answer=answer, video=first.video)
        for n, answer in (("right", f" {written.upper()}. "), ("wrong", f"{written} x"))
    )
    outcomes = list(bench.score(None, [right, wrong]))
    assert [o.correct for o in outcomes] == [1.0, 0.0]
    assert [o.p_gold for o in outcomes] == [None, None]
    assert normalised("  The  Cat!? ") == "the cat"


def test_agreement_is_with_the_uncompressed_model(make_bench: MakeBench, examples: tuple[Example, ...]) -> None:
    bench = make_bench("agreement")
    asked = [Example(id=e.id, group=e.group, question=e.question, video=e.video) for e in examples[:3]]
    policy = load_policy("random", retention_ratio=0.01)
    ours, base = list(bench.score(policy, asked)), list(bench.score(None, asked))
    assert [o.correct for o in base] == [1.0] * 3
    assert [o.correct for o in ours] == [float(a.prediction == b.prediction) for a, b in zip(ours, base, strict=True)]
    assert [o.correct for o in bench.score(load_policy("none"), asked)] == [1.0] * 3


def test_the_workbench_is_a_bench_and_times_requests(make_bench: MakeBench) -> None:
    bench = make_bench()
    assert isinstance(bench, Bench)
    assert (bench.shape.frames, bench.shape.tokens, bench.clips) == (2, 36, 4)
    assert len({bench.clip_shape(i) for i in range(bench.clips)}) == 1
    for policy in (None, load_policy("vidcom2")):
        short = bench.timed(policy, 0, "ttft")
        assert 0 < short["vision_ms"] < short["ttft_ms"]
        assert short["ttft_ms"] >= short["vision_ms"] + short["compress_ms"]
        assert (short["compress_ms"] > 0) == (policy is not None)
        long = bench.timed(policy, 1, "e2e")
        assert long["e2e_ms"] > long["video_ms"] + long["preprocess_ms"] + long["first_token_ms"] > 0
        assert long["decode_step_ms"] > 0
    assert "get_video_features" not in vars(bench.loaded.model.base_model)
    assert all(type(value) is str for value in bench.describe().values())


def test_options_are_lettered_unless_the_question_names_them() -> None:
    plain = Example(id="a", group="g", question="Which way?", options=("left", "right"), answer="left")
    scored = scored_prompt(plain, as_written=False)
    assert scored.question == f"Which way?\nA. left\nB. right\n{INSTRUCTION}"
    assert scored.choices == ("A", "B")
    assert scored_prompt(plain, as_written=True).question == "Which way?"
    named = Example(id="b", group="g", question="Is it left or right?", options=("left", "right"), answer="left")
    assert scored_prompt(named, as_written=False).choices == ("left", "right")
    within = Example(id="c", group="g", question="Is it leftover or bright?", options=("left", "right"), answer="left")
    assert scored_prompt(within, as_written=False).choices == ("A", "B")
    many = Example(id="d", group="g", question="?", options=tuple(f"o{i}" for i in range(27)), answer="o1")
    with pytest.raises(DataError, match="at most 26"):
        scored_prompt(many, as_written=False)


def test_frames_in_memory_are_thinned_like_a_file() -> None:
    frames = torch.arange(16, dtype=torch.uint8)[:, None, None, None].expand(16, 3, 8, 8).contiguous()
    example = Example(id="a", group="g", question="?", frames=frames, fps=8.0)
    clip = ClipReader(4, None).clip(example)
    assert clip.frames[:, 0, 0, 0].tolist() == [0, 4, 8, 12]
    assert clip.fps == pytest.approx(2.0)
    assert len(ClipReader(None, 4.0).clip(example).frames) == 8
    assert len(ClipReader(None, None).clip(example).frames) == 16
    with pytest.raises(DataError, match="neither a video"):
        ClipReader(4, None).clip(Example(id="b", group="g", question="?"))


def test_a_shelf_lets_go_of_what_was_unused_longest() -> None:
    shelf = FrameCache(10)
    for name in "abc":
        shelf.put(name, name.upper(), 4)
        shelf.get("a")
    shelf.put("huge", "H", 11)
    assert [shelf.get(name) for name in ("a", "b", "c", "huge")] == ["A", None, "C", None]
