"""A plan the core refuses: who made it, what was expected, what came."""

from typing import Any

import pytest
import torch
from framework.kit import Best, Norm, answering, forge, policy, ramp

from vidsieve.framework.errors import PlanError, RetentionError, StageError
from vidsieve.framework.plans import Budget, Keep, Merge, Scores, Segments
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.stage import Stage

ALL = torch.ones(2, 3, dtype=torch.bool)
SOME = torch.tensor([[True, False, True], [False, True, False]])
PAIRS = torch.arange(6)


def around(hook: str, stage: Stage) -> Policy:
    """The smallest policy in which a stage with this hook makes sense."""
    if hook == "segment_frames":
        return policy(("bad", stage), Norm(), Best(), ratio=0.5)
    if hook == "budget_frames":
        return policy(("bad", stage), Norm(), Best(), ratio=0.5)
    if hook == "score_tokens":
        return policy(("bad", stage), Best(), ratio=0.5)
    return policy(("bad", stage), ratio=0.5, exact=False)


BAD: list[tuple[str, Any, str]] = [
    ("segment_frames", None, "returned nothing; return Segments. To change nothing, return a plan that says so"),
    ("budget_frames", None, "returned nothing; return Budget"),
    ("score_tokens", None, "returned nothing; return Scores"),
    ("select_tokens", None, "returned nothing; return Keep"),
    ("merge_tokens", None, "returned nothing; return Merge or Keep"),
    ("score_tokens", torch.ones(2, 3), "must return Scores, got Tensor"),
    ("score_tokens", Keep(ALL), "must return Scores, got Keep"),
    ("select_tokens", Merge(PAIRS, PAIRS), "must return Keep, got Merge"),
    ("merge_tokens", Scores(torch.ones(2, 3)), "must return Merge or Keep, got Scores"),
    ("select_tokens", True, "must return Keep, got bool"),
    # shapes
    ("score_tokens", Scores(torch.ones(3, 2)), r"Scores.values must have shape \(2, 3\), got \(3, 2\)"),
    ("score_tokens", Scores(torch.ones(6)), r"shape \(2, 3\), got \(6,\)"),
    ("select_tokens", Keep(ALL.T), r"Keep.mask must have shape \(2, 3\), got \(3, 2\)"),
    ("select_tokens", forge(Keep, mask=ALL, scores=torch.ones(2, 1)), r"Keep.scores must have shape \(2, 3\)"),
    ("select_tokens", forge(Keep, mask=ALL, protected=ALL[0]), r"Keep.protected must have shape \(2, 3\)"),
    ("budget_frames", Budget(share=torch.ones(3)), r"Budget.share must have shape \(2\), got \(3,\)"),
    ("budget_frames", forge(Budget, share=torch.ones(2), group=torch.arange(3)), r"Budget.group must have shape \(2\)"),
    ("segment_frames", Segments(torch.zeros(3, dtype=torch.int64)), r"Segments.labels must have shape \(2\)"),
    ("merge_tokens", forge(Merge, source=PAIRS, target=PAIRS[:5]), r"Merge.target must have shape \(6\), got \(5,\)"),
    ("merge_tokens", forge(Merge, source=PAIRS, target=PAIRS, weight=torch.ones(5)), r"Merge.weight must have shape"),
    # dtypes
    ("score_tokens", Scores(torch.ones(2, 3).bfloat16()), "must be float32, got bfloat16. Score in float32 whatever"),
    ("score_tokens", Scores(torch.ones(2, 3).double()), "must be float32, got float64"),
    ("score_tokens", forge(Scores, values=torch.ones(2, 3).long()), "must be float32, got int64"),
    ("score_tokens", forge(Scores, values=[[1.0] * 3] * 2), "Scores.values must be a tensor, got list"),
    ("select_tokens", forge(Keep, mask=ALL.long()), "Keep.mask must be bool, got int64"),
    ("select_tokens", forge(Keep, mask=ALL, protected=ALL.float()), "Keep.protected must be bool, got float32"),
    ("segment_frames", forge(Segments, labels=torch.zeros(2)), "Segments.labels must be int, got float32"),
    ("budget_frames", forge(Budget, share=torch.ones(2).long()), "Budget.share must be float, got int64"),
    ("merge_tokens", forge(Merge, source=PAIRS.float(), target=PAIRS), "Merge.source must be int, got float32"),
    # devices
    ("score_tokens", Scores(torch.ones(2, 3, device="meta")), "must be on cpu, where the tokens are, got meta"),
    ("select_tokens", Keep(ALL.to("meta")), "Keep.mask must be on cpu, where the tokens are, got meta"),
    ("budget_frames", Budget(share=torch.ones(2, device="meta")), "must be on cpu"),
    ("segment_frames", Segments(torch.zeros(2, dtype=torch.int64, device="meta")), "must be on cpu"),
    ("merge_tokens", forge(Merge, source=PAIRS, target=PAIRS.to("meta")), "Merge.target must be on cpu"),
    # content
    ("score_tokens", Scores(torch.full((2, 3), torch.nan)), "finite or .inf, got NaN or -inf on a living token"),
    ("score_tokens", Scores(torch.full((2, 3), -torch.inf)), "finite or .inf, got NaN or -inf"),
    ("budget_frames", Budget(share=torch.tensor([1.0, -1.0])), "finite and not negative"),
    ("budget_frames", Budget(share=torch.tensor([1.0, torch.nan])), "finite and not negative"),
    ("budget_frames", Budget(share=torch.tensor([1.0, torch.inf])), "finite and not negative"),
    ("budget_frames", Budget(), "either share or counts, got none"),
    ("budget_frames", Budget(share=torch.ones(2), counts=torch.ones(2).long()), "either share or counts, got both"),
    ("budget_frames", Budget(counts=torch.ones(2).long()), "would break the exact total.*or set `exact: false`"),
    ("segment_frames", Segments(torch.tensor([1, 1])), "must start at 0"),
    ("segment_frames", Segments(torch.tensor([0, -1])), "must never fall"),
    ("select_tokens", Keep(~ALL), "drops every visual token; keep at least one"),
    ("select_tokens", Keep(ALL, scores=torch.full((2, 3), torch.nan)), "Keep.scores has NaN"),
    ("select_tokens", Keep(SOME, protected=~SOME), "Keep.protected marks a token that Keep.mask drops"),
    ("merge_tokens", Merge(PAIRS[:0], PAIRS[:0]), "Merge has no pair"),
    ("merge_tokens", Merge(PAIRS, PAIRS + 1), "Merge indices must be in 0 to 5"),
    ("merge_tokens", Merge(PAIRS - 1, PAIRS), "Merge indices must be in 0 to 5"),
    ("merge_tokens", Merge(PAIRS[1:], torch.zeros(5).long()), "a Merge target must list itself"),
    ("merge_tokens", Merge(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 1])), "has a chain"),
    ("merge_tokens", Merge(PAIRS, PAIRS, torch.full((6,), -1.0)), "Merge.weight must be finite and >= 0"),
    ("merge_tokens", Merge(PAIRS, PAIRS, torch.full((6,), torch.nan)), "Merge.weight must be finite"),
    ("merge_tokens", Merge(PAIRS, PAIRS, torch.zeros(6)), "Merge.weight sums to 0 on a target"),
]


@pytest.mark.parametrize(("hook", "plan", "words"), BAD, ids=[f"{hook}-{n}" for n, (hook, _, _) in enumerate(BAD)])
def test_a_bad_plan_is_refused_by_name(hook: str, plan: Any, words: str) -> None:
    bad = around(hook, answering(**{hook: plan}))
    if "exact: false" in words:
        assert bad.exact
    with pytest.raises(PlanError, match=words) as caught:
        bad.plan(ramp(2, 3))
    assert str(caught.value).startswith(f"policy 'test', stage 'bad', {hook}: ")


@pytest.mark.parametrize("plan", [Keep(ALL), Merge(PAIRS, PAIRS)], ids=["keep", "merge"])
def test_a_dropped_token_cannot_come_back(plan: Any) -> None:
    first = answering(select_tokens=Keep(SOME))
    with pytest.raises(PlanError, match=r"stage 'second', merge_tokens: .*that an earlier stage dropped"):
        policy(("first", first), ("second", answering(merge_tokens=plan)), ratio=0.5).plan(ramp(2, 3))


def test_half_precision_shares_and_small_integers_are_welcome() -> None:
    budget = answering(budget_frames=Budget(share=torch.ones(2).half(), group=torch.zeros(2, dtype=torch.int32)))
    assert policy(budget, Norm(), Best(), ratio=0.5).plan(ramp(2, 3)).report.kept_tokens == 3
    into = Merge(PAIRS.int(), (PAIRS // 2 * 2).int())
    assert policy(("m", answering(merge_tokens=into)), ratio=0.5).plan(ramp(2, 3)).index.tolist() == [0, 2, 4]


def test_counts_are_taken_where_exact_totals_are_off() -> None:
    seen: list[Any] = []
    counts = answering(budget_frames=Budget(counts=torch.tensor([2, 1])))
    keep = answering(select_tokens=lambda tokens: (seen.append(tokens.budget.counts), Keep(SOME))[1], reads=("budget",))
    plan = policy(("counts", counts), ("keep", keep), ratio=0.5, exact=False).plan(ramp(2, 3))
    assert (seen[0].tolist(), plan.report.per_frame) == ([2, 1], ((2, 1),))


def raising(error: BaseException) -> Stage:
    def fail(tokens: Any) -> None:
        raise error

    return answering(score_tokens=fail)


@pytest.mark.parametrize("error", [ValueError("odd"), KeyError("x"), RuntimeError("size"), AssertionError()])
def test_a_stage_that_raises_is_named_and_its_error_is_the_cause(error: Exception) -> None:
    with pytest.raises(StageError, match="policy 'test', stage 'bad', score_tokens: raised") as caught:
        policy(("bad", raising(error)), Best(), ratio=0.5).plan(ramp(2, 3))
    assert caught.value.__cause__ is error
    assert type(error).__name__ in str(caught.value)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), MemoryError(), KeyboardInterrupt(), RetentionError("too few")]
)
def test_memory_interruption_and_our_own_errors_pass_as_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        policy(("bad", raising(error)), Best(), ratio=0.5).plan(ramp(2, 3))
    assert caught.value is error


def test_a_stage_that_failed_once_may_work_the_next_time() -> None:
    left = [ValueError("first"), None]

    def sometimes(tokens: Any) -> Scores:
        error = left.pop(0)
        if error is not None:
            raise error
        return Scores(torch.ones(2, 3))

    flaky = policy(("flaky", answering(score_tokens=sometimes)), Best(), ratio=0.5)
    with pytest.raises(StageError):
        flaky.plan(ramp(2, 3))
    assert flaky.plan(ramp(2, 3)).report.kept_tokens == 3
