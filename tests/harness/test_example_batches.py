"""Questions about one video behind its cached prefix: the outcomes of one by one, in fewer passes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vidsieve import load_policy
from vidsieve.framework.registry import default
from vidsieve.framework.task import Example, Outcome
from vidsieve.harness import example_batches
from vidsieve.harness.data.user_data import LabelledData
from vidsieve.harness.example_batches import ExampleBatches
from vidsieve.harness.example_scoring import Scorer
from vidsieve.harness.model_bench import Workbench
from vidsieve.harness.model_choice import choose
from vidsieve.harness.model_loading import load
from vidsieve.harness.runner import Runners
from vidsieve.harness.setup import Setup
from vidsieve.tuner.protocol import Intervention, SmallerInput

Score = Callable[..., list[Outcome]]
RATIOS = {"fastv": 0.5}
"""Where the policy's own cannot be reached by a model of few layers."""


class Passes:
    """Counts what runs on a model."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.prefills, self.videos = 0, 0
        model.get_decoder().register_forward_pre_hook(self._decoder, with_kwargs=True)  # type: ignore[operator]
        base, name = model.base_model, "get_video_features"
        encode = getattr(base, name)

        def counted(*args: object, **kwargs: object) -> object:
            self.videos += 1
            return encode(*args, **kwargs)

        counted.__wrapped__ = encode  # type: ignore[attr-defined]
        setattr(base, name, counted)

    def _decoder(self, module: object, args: object, kwargs: dict[str, torch.Tensor | None]) -> None:
        given = kwargs.get("inputs_embeds")
        given = kwargs["input_ids"] if given is None else given
        assert given is not None
        self.prefills += given.shape[1] > 1


@pytest.fixture(scope="module")
def bench(models: Path, dataset: Path) -> Workbench:
    setup = Setup(model=str(models / "qwen2-vl-tiny"), frames=8, max_new_tokens=3)
    return Workbench(
        load(choose(setup.model, None, default()), setup, default()), setup, "accuracy", examples_of(dataset)
    )


def examples_of(dataset: Path) -> tuple[Example, ...]:
    return LabelledData(dataset).all


@pytest.fixture
def examples(dataset: Path) -> tuple[Example, ...]:
    """Four videos, three questions each."""
    return examples_of(dataset)


@pytest.fixture
def passes(bench: Workbench) -> Iterator[Passes]:
    hooks = bench.loaded.model.get_decoder()._forward_pre_hooks
    before = dict(hooks)
    yield Passes(bench.loaded.model)
    hooks.clear()
    hooks.update(before)
    del bench.loaded.model.base_model.get_video_features


def scorer(bench: Workbench, rows: int = 16, metric: str = "accuracy", *, share: bool = True) -> Scorer:
    return Scorer(Runners(bench.runner, lambda: 96 * 96), metric, rows, 3, share_prefix=share)


def one_by_one(bench: Workbench, policy: Intervention | None, asked: Sequence[Example], metric: str) -> list[Outcome]:
    """Each whole prompt alone."""
    alone = scorer(bench, 1, metric, share=False)
    return [outcome for example in asked for outcome in alone.score(policy, [example])]


def assert_same(found: Sequence[Outcome], expected: Sequence[Outcome]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert replace(one, p_gold=None) == replace(other, p_gold=None)
        assert one.p_gold == pytest.approx(other.p_gold, abs=1e-5)


def every_way(examples: Sequence[Example]) -> list[Example]:
    """Of each video: two scored by first tokens, one by whole options, one written; videos take turns."""
    question = "is the flash red or red ring or blue ?"
    asked = []
    for number in range(4):
        for first in range(0, len(examples), 3):
            one = examples[first + number % 3]
            colliding = {"question": question, "options": ("red", "red ring", "blue"), "answer": "red ring"}
            change = {1: colliding, 3: {"options": None}}.get(number, {})
            asked.append(replace(one, id=f"{one.id}-{number}", **change))  # type: ignore[arg-type]
    return asked


POLICIES = (None, "none", "vidcom2", "random", "dycoke", "pixel-change", "cdpruner", "fastv")


@pytest.mark.parametrize(("name", "rows"), [*((name, 3) for name in POLICIES), (None, 1), ("vidcom2", 16)])
def test_outcomes_are_those_of_each_example_alone(
    bench: Workbench, examples: tuple[Example, ...], name: str | None, rows: int
) -> None:
    policy = None if name is None else load_policy(name, retention_ratio=RATIOS.get(name))
    asked = every_way(examples[:6] if rows == 3 else examples[:3])
    assert_same(list(scorer(bench, rows).score(policy, asked)), one_by_one(bench, policy, asked, "accuracy"))


@pytest.mark.parametrize("kind", ["frames", "pixels"])
def test_less_video_shares_too(bench: Workbench, examples: tuple[Example, ...], passes: Passes, kind: str) -> None:
    smaller = SmallerInput(kind=kind, ratio=0.5)  # type: ignore[arg-type]
    expected = one_by_one(bench, smaller, examples[:6], "accuracy")
    passes.videos = 0
    assert_same(list(scorer(bench).score(smaller, examples[:6])), expected)
    assert passes.videos == 2


@pytest.mark.parametrize(
    ("name", "videos", "prefills"),
    [
        (None, 2, 2 + 2),
        ("vidcom2", 2, 2 + 2),
        ("random", 2, 2 + 2),
        ("dycoke", 2, 2 + 2),  # what it does in decode cannot change a first token
        ("cdpruner", 1, 1),  # looks at the question: one batch of whole prompts
        ("fastv", 1, 1),
    ],
)
def test_a_video_is_run_once_for_its_questions_unless_the_policy_looks_at_them(
    bench: Workbench, examples: tuple[Example, ...], passes: Passes, name: str | None, videos: int, prefills: int
) -> None:
    policy = None if name is None else load_policy(name, retention_ratio=RATIOS.get(name))
    assert len(list(scorer(bench).score(policy, examples[:6]))) == 6
    assert (passes.videos, passes.prefills) == (videos, prefills)


@pytest.mark.parametrize(("whole_prompts", "videos"), [(False, 2), (True, 6)])
def test_shared_prefixes_can_be_switched_off(
    bench: Workbench, examples: tuple[Example, ...], passes: Passes, whole_prompts: bool, videos: int
) -> None:
    setup = Setup(model="of the bench", frames=8, whole_prompts=whole_prompts, feature_store="off")
    list(Workbench(bench.loaded, setup, "accuracy", examples).score(None, examples[:6]))
    assert passes.videos == videos


def test_a_decode_stage_takes_part_where_answers_are_written(
    bench: Workbench, examples: tuple[Example, ...], passes: Passes
) -> None:
    asked = [replace(one, options=None) for one in examples[:3]]
    list(scorer(bench, 1).score(load_policy("dycoke"), asked))
    assert passes.videos == 3


def test_the_options_of_one_question_share_its_video(
    bench: Workbench, examples: tuple[Example, ...], passes: Passes
) -> None:
    (asked,) = [one for one in every_way(examples[:3]) if one.options and "red ring" in one.options]
    list(scorer(bench).score(None, [asked]))
    assert (passes.videos, passes.prefills) == (1, 1 + 3)


def test_one_question_about_a_video_is_run_whole_and_in_batches(
    bench: Workbench, examples: tuple[Example, ...], passes: Passes
) -> None:
    list(scorer(bench, 4).score(None, examples[::3]))
    assert (passes.videos, passes.prefills) == (1, 1)


def test_outcomes_come_as_soon_as_their_video_is_done(
    bench: Workbench, examples: tuple[Example, ...], passes: Passes
) -> None:
    outcomes = scorer(bench).score(None, examples)
    assert [next(outcomes).example_id for _ in range(3)] == [one.id for one in examples[:3]]
    assert passes.videos == 1
    assert next(outcomes).example_id == examples[3].id
    assert passes.videos == 2


@pytest.mark.parametrize(("kept", "videos"), [(example_batches.KEPT_BYTES, 2), (0, 3)])
def test_a_video_cut_by_two_portions_is_run_once_where_memory_allows(
    bench: Workbench,
    examples: tuple[Example, ...],
    passes: Passes,
    monkeypatch: pytest.MonkeyPatch,
    kept: int,
    videos: int,
) -> None:
    monkeypatch.setattr(example_batches, "KEPT_BYTES", kept)
    asked = [replace(one, id=f"{one.id}-{half}") for one in examples[:2] for half in "ab"]
    other = [replace(one, id=f"{one.id}-c") for one in examples[3:5]]
    ours, policy = scorer(bench), load_policy("vidcom2")
    found = [*ours.score(policy, asked[:2]), *ours.score(policy, asked[2:]), *ours.score(policy, other)]
    assert passes.videos == videos
    assert_same(found, one_by_one(bench, policy, [*asked, *other], "accuracy"))


def test_a_kept_prefix_serves_no_other_policy_and_no_other_frames(
    bench: Workbench, examples: tuple[Example, ...], passes: Passes
) -> None:
    clips = torch.randint(256, (2, 4, 3, 96, 96), dtype=torch.uint8)
    asked = [
        replace(one, id=f"{one.id}-clip{number}", group="one", video=None, frames=clip.clone(), fps=8.0)
        for one in examples[:2]
        for number, clip in enumerate(clips)
    ]
    ours = scorer(bench)
    for policy in (load_policy("vidcom2"), load_policy("vidcom2", retention_ratio=0.5), None):
        for portion in (asked[::2], asked[1::2]):
            passes.videos = 0
            found = list(ours.score(policy, portion))
            assert passes.videos == 1
            assert_same(found, one_by_one(bench, policy, portion, "accuracy"))
    passes.videos = 0
    assert_same(list(ours.score(None, asked)), one_by_one(bench, None, asked, "accuracy"))
    assert passes.videos == 2 + 4


def test_agreement_is_the_same_behind_a_prefix(bench: Workbench, examples: tuple[Example, ...], passes: Passes) -> None:
    asked = [replace(one, options=None, answer=None) for one in examples[:3]]
    policy = load_policy("random", retention_ratio=0.05)
    found = list(scorer(bench, metric="agreement").score(policy, asked))
    assert passes.videos == 2
    assert_same(found, one_by_one(bench, policy, asked, "agreement"))


def test_an_example_given_twice_has_its_outcome_twice(bench: Workbench, examples: tuple[Example, ...]) -> None:
    first, second, third = scorer(bench).score(None, [examples[0], examples[1], examples[0]])
    assert (first, second.example_id) == (third, examples[1].id)


def test_a_batch_holds_clips_of_one_shape(llava: Path, dataset: Path) -> None:
    """LLaVA-OneVision takes no clips of unequal frame counts in one call."""
    setup = Setup(model=str(llava), fps=8.0, batch_size=8, feature_store="off")
    examples = examples_of(dataset)
    frames = torch.randint(256, (16, 3, 96, 96), dtype=torch.uint8)
    asked = [
        replace(one, id=f"clip-{number}", group=f"clip-{number}", video=None, frames=frames[:count], fps=8.0)
        for number, (one, count) in enumerate(zip(examples[:6], (8, 6, 8, 6, 16, 8), strict=True))
    ]
    bench = Workbench(load(choose(setup.model, None, default()), setup, default()), setup, "accuracy", asked[:1])
    policy, runners = load_policy("vidcom2"), Runners(bench.runner, lambda: 96 * 96)
    batches = ExampleBatches(runners, 8, lambda example: "first token").of(policy, asked)
    assert [len(batch.examples) for batch in batches] == [3, 2, 1]
    together = list(bench.score(policy, asked))
    assert_same(together, one_by_one(bench, policy, asked, "accuracy"))
    half = SmallerInput(kind="frames", ratio=0.5)
    assert [one.retention_ratio for one in bench.score(half, asked)] == pytest.approx([0.5] * 6)
