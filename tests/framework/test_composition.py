"""What is read must have been made, what is made must be read, and somebody must decide the count."""

import pytest
import torch
from framework.kit import Best, Even, Norm, Pairs, Window, answering, policy, ramp

from vidsieve.framework.errors import PolicyError, UsageError
from vidsieve.framework.plans import Budget, Keep, KeepFrames, KeepKV, Scores
from vidsieve.framework.stage import Stage


def faults(*stages: Stage | tuple[str, Stage], ratio: float | None = None) -> list[str]:
    """The sentences a policy of these stages is refused with; none if it is accepted."""
    try:
        policy(*stages, ratio=ratio)
    except PolicyError as error:
        return str(error).splitlines()
    return []


def layer_scorer(**fields: object) -> Stage:
    return answering(prune_layer=None, layers=(2,), **fields)


def test_a_complete_composition_has_no_fault() -> None:
    assert faults(Pairs(), Even(), Norm(), Best(), ratio=0.5) == []


def test_a_reader_before_its_writer_is_refused() -> None:
    assert faults(Best(), Norm(), ratio=0.5) == [
        "policy 'test': stage 'best' reads scores, but no earlier stage makes it.",
        "policy 'test': stage 'norm' makes scores that no later stage reads.",
    ]


@pytest.mark.parametrize(("maker", "made"), [(Even(), "budget"), (Norm(), "scores"), (Pairs(), "segments")])
def test_what_nobody_reads_is_refused(maker: Stage, made: str) -> None:
    assert faults(("maker", maker), Window(), ratio=0.9) == [
        f"policy 'test': stage 'maker' makes {made} that no later stage reads."
    ]


def test_scores_replaced_before_anyone_read_them_are_refused() -> None:
    assert faults(("first", Norm()), ("second", Norm()), Best(), ratio=0.5) == [
        "policy 'test': stage 'first' makes scores that no later stage reads."
    ]


def test_a_stage_that_reads_the_scores_it_replaces_is_welcome() -> None:
    sharpen = answering(score_tokens=None, reads=("scores",))
    assert faults(Norm(), sharpen, Best(), ratio=0.5) == []


def test_a_reduction_spends_budget_and_scores() -> None:
    assert faults(Even(), Norm(), ("first", Best(keep_ratio=0.5)), ("second", Best()), ratio=0.2) == [
        "policy 'test': stage 'second' reads scores, but no earlier stage makes it."
    ]


def test_a_reduction_leaves_segments_alive() -> None:
    reader = answering(select_tokens=None, reads=("segments",))
    assert faults(Pairs(), Norm(), Best(keep_ratio=0.5), reader, ratio=0.2) == []


def test_a_stage_with_several_hooks_may_read_what_it_makes() -> None:
    whole = answering(score_tokens=None, select_tokens=None, reads=("scores",))
    assert faults(whole, ratio=0.5) == []


def test_the_same_fault_of_two_hooks_is_told_once() -> None:
    whole = answering(score_tokens=None, select_tokens=None, reads=("segments", "scores"))
    assert faults(("whole", whole), ratio=0.5) == [
        "policy 'test': stage 'whole' reads segments, but no earlier stage makes it."
    ]


def test_a_frame_budget_steers_a_layer_stage() -> None:
    assert faults(Even(), layer_scorer(), ratio=0.5) == []


def test_a_budget_spent_before_the_layers_steers_nothing_there() -> None:
    reader = layer_scorer(reads=("budget",))
    assert faults(Even(), Norm(), Best(keep_ratio=0.5), ("layer", reader), ratio=0.3) == [
        "policy 'test': stage 'layer' reads budget, but no earlier stage makes it."
    ]


def test_scores_that_a_layer_stage_does_not_read_are_unread() -> None:
    assert faults(Norm(), layer_scorer(), ratio=0.5) == [
        "policy 'test': stage 'norm' makes scores that no later stage reads."
    ]
    assert faults(Norm(), layer_scorer(reads_if_made=("scores",)), ratio=0.5) == []


def test_yaml_order_does_not_put_a_layer_stage_before_a_token_stage() -> None:
    """A layer stage written first still runs last, so it may read what the file lists after it."""
    assert faults(("layer", layer_scorer(reads=("scores",))), Norm(), ratio=0.5) == []


@pytest.mark.parametrize("hook", ["reduce_frames", "prune_kv"])
def test_steps_that_are_shown_no_scores_may_not_read_them(hook: str) -> None:
    reader = answering(**{hook: None}, reads=("scores",), layers=(1,))
    told = faults(Norm(), ("outside", reader), Best(), ratio=0.5)
    assert told == [f"policy 'test': stage 'outside' reads scores, but {hook} is not shown it."]


def test_a_stage_without_a_hook_is_refused() -> None:
    class Idle(Stage):
        pass

    assert faults(Idle()) == ["policy 'test': stage 'idle' implements no hook, so it would do nothing."]


def test_two_stages_of_one_label_are_refused() -> None:
    told = faults(Norm(), Best(keep_ratio=0.5), ("again", Norm()), Best(), ratio=0.2)
    assert told == ["policy 'test': stage 'best' stands twice; give one of them a label with `as:`."]


def test_a_need_that_no_adapter_can_have_is_refused() -> None:
    greedy = answering(score_tokens=None, needs=frozenset({"vision_atention"}))
    told = faults(("greedy", greedy), Best(), ratio=0.5)
    assert len(told) == 1
    assert "'vision_atention', which no adapter has. Did you mean 'vision_attention'" in told[0]


def test_an_earlier_reducer_must_say_how_much_it_leaves() -> None:
    told = faults(("window", Window()), Norm(), Best(), ratio=0.3)
    assert len(told) == 1
    assert "'window' is not the last reducing stage, so its drop_ratio must be given" in told[0]
    assert "only 'best' is solved" in told[0]
    assert faults(Window(drop_ratio=0.5), Norm(), Best(), ratio=0.3) == []


def test_a_layer_stage_closes_whatever_the_order_of_the_file() -> None:
    told = faults(layer_scorer(), Norm(), Best(), ratio=0.3)
    assert len(told) == 1
    assert "'best' is not the last reducing stage, so its keep_ratio must be given" in told[0]


def test_somebody_must_say_how_many_tokens_stay() -> None:
    assert faults(Norm(), Best()) == [
        "policy 'test': nothing says how many tokens stay: give retention_ratio or best.keep_ratio."
    ]
    assert faults(Norm(), Best(keep_ratio=0.5)) == []
    assert faults(Norm(), Best(), ratio=0.5) == []


def test_a_count_that_depends_on_content_needs_no_ratio() -> None:
    assert faults(answering(select_tokens=None, data_dependent=True)) == []


@pytest.mark.parametrize("ratio", [0.999, 0.25])
def test_a_ratio_without_anything_that_removes_is_refused(ratio: float) -> None:
    kv = answering(prune_kv=KeepKV, layers=(1,))
    for stages in ([], [kv]):
        assert faults(*stages, ratio=ratio) == [
            f"policy 'test': retention_ratio is {ratio:g}, but no stage removes visual tokens before decode."
        ]
        assert faults(*stages, ratio=1.0) == []


def test_frames_alone_can_answer_for_the_ratio_but_then_it_must_be_given() -> None:
    frames = ("frames", answering(reduce_frames=KeepFrames))
    assert faults(frames, ratio=0.5) == []
    assert faults(frames) == ["policy 'test': nothing says how many tokens stay: give retention_ratio."]


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.5, float("nan"), True])
def test_a_ratio_outside_zero_to_one_is_refused_from_python_too(ratio: object) -> None:
    with pytest.raises(UsageError, match=r"retention_ratio: must be in \(0, 1\], got"):
        policy(Norm(), Best(), ratio=ratio)  # type: ignore[arg-type]


def test_all_faults_come_at_once() -> None:
    assert len(faults(("a", Pairs()), ("b", Window()), ("b", Even()))) == 4


def test_an_empty_policy_changes_nothing() -> None:
    empty = policy()
    features = ramp(3, 4)
    plan = empty.plan(features)
    assert empty.is_empty
    assert plan.keep.all()
    assert torch.equal(plan.features, features.flatten(0, 1))
    assert torch.equal(plan.carry(features.flatten(0, 1)), features.flatten(0, 1))
    assert plan.report.attained_ratio == 1.0


def test_stages_are_sorted_by_the_step_they_belong_to() -> None:
    frames = answering(reduce_frames=KeepFrames)
    layer, kv = layer_scorer(), answering(prune_kv=KeepKV, layers=(1,))
    both = policy(("f", frames), ("l", layer), ("n", Norm()), ("b", Best(keep_ratio=0.5)), ("k", kv), ratio=0.4)
    assert [b.label for b in both.frame_stages] == ["f"]
    assert [b.label for b in both.video_stages] == ["n", "b"]
    assert [b.label for b in both.layer_stages] == ["l"]
    assert [b.label for b in both.kv_stages] == ["k"]
    assert both.closer is not None and both.closer.label == "l"


def test_needs_and_wants_are_those_of_all_stages() -> None:
    one = answering(score_tokens=Scores, needs=frozenset({"question"}), wants=frozenset({"timestamps_s"}))
    other = answering(budget_frames=Budget, needs=frozenset({"pixel_difference"}))
    both = policy(("one", one), ("other", other), ("best", Best()), ratio=0.5)
    assert both.needs() == {"question", "pixel_difference"}
    assert both.wants() == {"timestamps_s"}


def test_the_same_stage_object_may_stand_under_two_labels() -> None:
    every = answering(select_tokens=lambda tokens: Keep(tokens.keep), data_dependent=True)
    with pytest.warns(UserWarning, match="removed none"):
        assert policy(("a", every), ("b", every)).plan(ramp(2, 3)).keep.all()
