"""Who is called when, and what each stage is shown."""

from typing import Any

import pytest
import torch
from framework.kit import Best, Norm, answering, policy, ramp

from vidsieve.framework.errors import InputError, PolicyError
from vidsieve.framework.plans import Budget, Keep, Merge, Scores, Segments
from vidsieve.framework.records import VideoTokens


class Diary:
    """Answers for every hook that note who was called and what was there."""

    def __init__(self) -> None:
        self.pages: list[tuple[str, VideoTokens]] = []

    @property
    def order(self) -> list[str]:
        return [name for name, _ in self.pages]

    def answer(self, name: str, hook: str) -> Any:
        def write(tokens: VideoTokens) -> object:
            self.pages.append((f"{name}.{hook.split('_')[0]}", tokens))
            frames, width = tokens.keep.shape
            return {
                "segment_frames": Segments(torch.arange(frames)),
                "budget_frames": Budget(share=torch.ones(frames)),
                "score_tokens": Scores(torch.ones(frames, width)),
                "select_tokens": Keep(tokens.keep),
                "merge_tokens": Keep(tokens.keep),
            }[hook]

        return write

    def stage(self, name: str, *hooks: str, **extra: Any) -> Any:
        return name, answering(**{hook: self.answer(name, hook) for hook in hooks}, **extra)


MADE = ("segments", "budget", "scores")


def test_stages_run_in_the_order_of_the_file_and_hooks_in_house_order() -> None:
    diary = Diary()
    first = diary.stage("a", "merge_tokens", "score_tokens", reads=("scores",), data_dependent=True)
    second = diary.stage("b", "select_tokens", "budget_frames", "segment_frames", reads=MADE[:2], data_dependent=True)
    with pytest.warns(UserWarning, match="removed none"):
        policy(first, second).plan(ramp(3, 2))
    assert diary.order == ["a.score", "a.merge", "b.segment", "b.budget", "b.select"]


def test_a_stage_is_shown_what_earlier_ones_made_and_a_reduction_spends_it() -> None:
    diary = Diary()
    stages = (
        diary.stage("maker", "segment_frames", "budget_frames", "score_tokens"),
        diary.stage("first", "select_tokens", reads=MADE, data_dependent=True),
        diary.stage("second", "select_tokens", reads_if_made=MADE, data_dependent=True),
    )
    with pytest.warns(UserWarning, match="removed none"):
        policy(*stages).plan(ramp(3, 2))
    shown = [{name for name in MADE if getattr(tokens, name) is not None} for _, tokens in diary.pages]
    assert shown == [set(), {"segments"}, {"segments", "budget"}, set(MADE), {"segments"}]


def test_later_scores_replace_earlier_ones() -> None:
    negate = answering(score_tokens=lambda tokens: Scores(-tokens.scores.values), reads=("scores",))
    features = ramp(2, 4)
    assert policy(Norm(), Best(), ratio=0.25).plan(features).index.tolist() == [6, 7]
    assert policy(Norm(), negate, Best(), ratio=0.25).plan(features).index.tolist() == [0, 1]


def test_infinite_scores_are_kept_first() -> None:
    values = torch.zeros(2, 3)
    values[0, 2] = values[1, 0] = torch.inf
    plan = policy(("s", answering(score_tokens=Scores(values))), Best(), ratio=0.34).plan(ramp(2, 3))
    assert plan.index.tolist() == [2, 3]


def test_kept_tokens_stay_in_their_order() -> None:
    features = ramp(4, 5)
    features[..., 0] = torch.randperm(20).view(4, 5)
    plan = policy(Norm(), Best(), ratio=0.4).plan(features)
    assert plan.index.tolist() == sorted(plan.index.tolist())
    assert torch.equal(plan.index, plan.keep.flatten().nonzero().squeeze(1))
    assert torch.equal(plan.features, features.flatten(0, 1)[plan.index])
    assert torch.equal(plan.weight, torch.ones(8))


def test_a_stage_sees_the_sizes_it_was_promised() -> None:
    diary = Diary()
    inputs: dict[str, Any] = {
        "token_grid": (3, 1, 2),
        "timestamps_s": torch.tensor([0.0, 0.5, 1.0]),
        "question": torch.ones(5, 4),
        "signals": {"pixel_difference": torch.ones(3, 2)},
    }
    with pytest.warns(UserWarning, match="removed none"):
        policy(diary.stage("a", "select_tokens", data_dependent=True)).plan(ramp(3, 2), **inputs)
    shown = diary.pages[0][1]
    assert all(getattr(shown, name) is value for name, value in inputs.items() if name != "signals")
    assert shown.signals["pixel_difference"] is inputs["signals"]["pixel_difference"]
    assert shown.keep.all() and shown.weight.eq(1).all()
    assert shown.frame_index.tolist() == [0, 1, 2]
    assert (shown.token_budget, shown.retention_ratio, shown.state) == (None, None, None)


def test_what_a_dropped_token_holds_changes_no_later_decision() -> None:
    """The first stage drops half; what is then written into the dropped rows must not matter."""
    half = answering(select_tokens=lambda tokens: Keep(torch.arange(8).view(2, 4) % 2 == 0))

    def score(tokens: VideoTokens) -> Scores:
        return Scores(tokens.features[..., 0].float())

    features = ramp(2, 4)
    clean = policy(("half", half), ("score", answering(score_tokens=score)), Best(), ratio=0.25).plan(features)
    for poison in (float("nan"), float("inf"), 1e30):
        poisoned = features.clone()
        poisoned[:, 1::2] = poison
        plan = policy(("half", half), ("score", answering(score_tokens=score)), Best(), ratio=0.25).plan(poisoned)
        assert torch.equal(plan.keep, clean.keep)
        assert torch.equal(plan.features, clean.features)


def test_scores_of_dropped_tokens_are_hidden_from_later_stages() -> None:
    seen: list[torch.Tensor] = []
    half = answering(select_tokens=lambda tokens: Keep(torch.arange(8).view(2, 4) % 2 == 0))
    nan = answering(score_tokens=lambda tokens: Scores(torch.where(tokens.keep, 1.0, torch.nan)))
    last = answering(select_tokens=lambda tokens: (seen.append(tokens.scores.values), Keep(tokens.keep))[1],
                     reads=("scores",), data_dependent=True)  # fmt: skip
    policy(("half", half), ("nan", nan), ("last", last)).plan(ramp(2, 4))
    assert torch.equal(seen[0].isneginf(), torch.arange(8).view(2, 4) % 2 == 1)


def test_two_videos_of_one_request_draw_different_numbers_and_one_video_the_same() -> None:
    def draw(tokens: VideoTokens) -> Scores:
        return Scores(torch.rand(tokens.keep.shape, generator=tokens.rng))

    chance = policy(("chance", answering(score_tokens=draw)), Best(), ratio=0.25)
    features = ramp(8, 8)

    def kept(**which: int) -> list[int]:
        return chance.plan(features, **which).index.tolist()

    assert kept() == kept() == kept(seed=0, video_index=0)
    assert kept(seed=1) == kept(seed=1)
    assert len({tuple(kept(**which)) for which in ({}, {"seed": 1}, {"video_index": 1}, {"seed": 2**62})}) == 4


def test_a_stage_draws_by_its_place_in_the_policy() -> None:
    drawn: dict[str, float] = {}

    def draw(name: str) -> Any:
        def score(tokens: VideoTokens) -> Scores:
            drawn[name] = float(torch.rand(1, generator=tokens.rng))
            return Scores(torch.ones(tokens.keep.shape))

        return name, answering(score_tokens=score, reads_if_made=("scores",))

    policy(draw("first"), draw("second"), Best(), ratio=0.5).plan(ramp(2, 2))
    assert drawn["first"] != drawn["second"]


def test_global_randomness_is_neither_used_nor_moved() -> None:
    before = torch.get_rng_state()
    policy(Norm(), Best(), ratio=0.5).plan(torch.ones(2, 2, 2))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "how"),
    [("token_grid", "token_grid=..."), ("timestamps_s", "timestamps_s=..."), ("question", "question=..."),
     ("vision_attention", "signals={'vision_attention': ...}")],
)  # fmt: skip
def test_a_missing_input_names_stage_and_argument(name: str, how: str) -> None:
    needy = answering(score_tokens=None, needs=frozenset({name}))
    with pytest.raises(PolicyError, match=f"stage 'needy': needs {name}, which was not given") as caught:
        policy(("needy", needy), Best(), ratio=0.5).plan(ramp(2, 2))
    assert how in str(caught.value)


def test_a_wanted_input_may_be_missing() -> None:
    wants = answering(score_tokens=Scores(torch.ones(2, 2)), wants=frozenset({"question"}))
    assert policy(("wants", wants), Best(), ratio=0.5).plan(ramp(2, 2)).report.kept_tokens == 2


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"token_grid": (2, 2, 3)}, r"token_grid must be \(t, h, w\) with t = 2 frames and h \* w = 4"),
        ({"token_grid": (4, 1, 2)}, "token_grid must be"),
        ({"signals": {"pixel_diference": torch.ones(1)}}, "no signal named 'pixel_diference'. Did you mean 'pixel_d"),
        (
            {"signals": {"pixel_difference": torch.ones(2, 3)}},
            r"pixel_difference must be floats of \(2, 4\), got float32",
        ),
        ({"signals": {"vision_attention": torch.ones(2, 4).int()}}, "vision_attention must be floats .*, got int32"),
        (
            {"signals": {"pre_merger_features": torch.ones(2, 4)}},
            r"pre_merger_features must be floats of \(2, 4, any\)",
        ),
        ({"units": 1}, "units must be at least the 2 frames"),
        ({"units": 5}, "frame_index must say which they are"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        policy(Norm(), Best(), ratio=0.5).plan(ramp(2, 4), **arguments)


def test_features_without_a_token_are_refused() -> None:
    for shape in ((0, 4, 2), (2, 0, 2)):
        with pytest.raises(InputError, match="not empty"):
            policy(Norm(), Best(), ratio=0.5).plan(torch.zeros(shape))


def test_planning_records_no_gradient() -> None:
    features = ramp(2, 4).requires_grad_()
    halves = answering(merge_tokens=Merge(torch.arange(8), torch.arange(8) // 2 * 2))
    merged = policy(("halves", halves), ratio=0.5).plan(features)
    assert not merged.features.requires_grad
    made = policy(Norm(), Best(), ratio=0.5).plan(features)
    assert not made.features.requires_grad
