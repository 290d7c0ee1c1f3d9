"""Step 9: how many visual tokens go on after a layer, and which."""

from typing import Any

import pytest
import torch
from framework.kit import Best, Even, Norm, answering, forge, policy, ramp
from torch import Tensor

from vidsieve.framework.errors import PlanError, RetentionError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Budget, Keep, Merge, Scores
from vidsieve.framework.policy import Policy
from vidsieve.framework.records import LayerTokens, VideoShape
from vidsieve.framework.solve import layer_count, layer_turn
from vidsieve.framework.stage import Stage, tunable
from vidsieve.framework.testing import rank_layer


class LastRow(Stage):
    """Scores by the attention of the last prompt token, as FastV does."""

    solves = "keep_ratio"
    keep_ratio: float | None = tunable(None, low=0.0, high=1.0)
    layer: int = 1

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return (self.layer,)

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        return (1 / shape.total, 1.0) if self.keep_ratio is None else (self.keep_ratio, self.keep_ratio)

    @hookimpl
    def prune_layer(self, tokens: LayerTokens) -> Scores:
        return Scores(tokens.attention("last").float().mean(dim=0)[0])


def layered(ratio: float | None, keep_ratio: float | None = None, layer: int = 1) -> Policy:
    return policy(("fastv", LastRow(keep_ratio=keep_ratio, layer=layer)), ratio=ratio)


@pytest.mark.parametrize(
    ("layers", "layer", "ratio", "share"),
    # the keep shares at which FastV's mean over layers meets these ratios, K = 2 and 3
    [(28, 1, 0.25, 0.1923), (28, 1, 0.15, 0.0846), (28, 2, 0.25, 0.16), (32, 1, 0.25, 0.2), (32, 2, 0.15, 0.0621)],
)
def test_the_mean_over_layers_meets_the_ratio(layers: int, layer: int, ratio: float, share: float) -> None:
    baseline = 6272
    count = layer_count("here", ratio, [baseline] * (layer + 1), baseline, baseline, layers)
    assert count / baseline == pytest.approx(share, abs=5e-4)
    before = layer + 1
    mean = (before * baseline + (layers - before) * count) / (layers * baseline)
    assert mean <= ratio < mean + 1 / baseline


def test_earlier_removals_leave_more_for_the_layer_stage() -> None:
    # half of 100 enter every layer; 30 % over 10 layers is 300, 100 of them are spent after two layers
    assert layer_count("here", 0.3, [50, 50], 50, 100, 10) == 25
    assert layer_count("here", 0.3, [50, 40], 40, 100, 10) == 26


@pytest.mark.parametrize(("ratio", "count"), [(1.0, 50), (0.6, 50), (0.5, 50), (0.1, 1)])
def test_the_count_stays_between_one_and_what_is_alive(ratio: float, count: int) -> None:
    assert layer_count("here", ratio, [50, 50], 50, 100, 10) == count


def test_a_ratio_below_what_the_first_layers_spend_is_refused_with_the_lowest() -> None:
    with pytest.raises(RetentionError, match=r"after layer 1 of 10 reaches 0\.208 at least"):
        layer_count("here", 0.15, [100, 100], 100, 100, 10)


def test_pruning_after_the_last_layer_is_refused() -> None:
    with pytest.raises(RetentionError, match="where no layer comes after"):
        layer_count("here", 0.5, [100] * 4, 100, 100, 4)


def test_reach_over_layers_is_known_before_the_run() -> None:
    low, high = layered(0.5).attainable(VideoShape(4, 25, 10))
    assert (low, high) == (pytest.approx(0.2 + 0.8 / 100), 1.0)
    assert layered(None, 0.5).attainable(VideoShape(4, 25, 10)) == pytest.approx((0.6, 0.6))


def test_reach_multiplies_with_what_was_removed_before() -> None:
    both = policy(Norm(), Best(keep_ratio=0.5), ("fastv", LastRow(keep_ratio=0.5)), ratio=None)
    assert both.attainable(VideoShape(4, 25, 10)) == pytest.approx((0.3, 0.3))


def test_a_ratio_out_of_reach_over_layers_stops_the_plan_where_the_depth_is_known() -> None:
    with pytest.raises(RetentionError, match=r"ratio 0\.1 asked.*reaches 0\.208 to 1"):
        layered(0.1).plan(ramp(4, 25), layers=10)
    assert layered(0.1).plan(ramp(4, 25)).report.not_run == ("fastv",)


def test_the_closer_is_given_its_count_solved() -> None:
    made = layered(0.3)
    stage, count = layer_turn(made, made.stages[0], VideoShape(4, 25, 10), [100, 100])
    assert isinstance(stage, LastRow)
    assert count == 12  # (0.3 * 10 * 100 - 200) / 8
    assert stage.keep_ratio is not None


def test_a_fixed_stage_has_its_own_count() -> None:
    made = layered(None, 0.2)
    assert layer_turn(made, made.stages[0], VideoShape(4, 25, 10, (10, 0, 20, 10)), [40, 40])[1] == 8


ATTENTION = torch.tensor([[[9.0, 9.0, 9.0, 9.0, 9.0, 9.0], [0.1, 0.6, 0.2, 0.6, 0.5, 0.4]],
                          [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.3, 0.0, 0.2, 0.0, 0.3, 0.0]]])  # fmt: skip
FRAMES = torch.tensor([0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    ("count", "kept"), [(1, [4]), (2, [1, 4]), (3, [1, 3, 4]), (4, [0, 1, 3, 4]), (9, list(range(6)))]
)
def test_the_highest_of_the_last_row_go_on_ties_to_the_earlier(count: int, kept: list[int]) -> None:
    # means of the heads: .2 .3 .2 .3 .4 .2
    assert rank_layer(LastRow(), ATTENTION, count=count).tolist() == kept


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (Budget(share=torch.tensor([1.0, 1.0])), [0, 1, 3, 4]),
        (Budget(share=torch.tensor([3.0, 1.0])), [0, 1, 2, 4]),
        (Budget(share=torch.tensor([0.0, 1.0])), [1, 3, 4, 5]),
        (Budget(share=torch.tensor([3.0, 1.0]), group=torch.tensor([5, 5])), [0, 1, 3, 4]),
        (Budget(counts=torch.tensor([1, 2])), [1, 3, 4]),
    ],
)
def test_a_frame_budget_steers_the_layer_as_it_steers_a_selection(budget: Budget, kept: list[int]) -> None:
    assert rank_layer(LastRow(), ATTENTION, count=4, frame=FRAMES, budget=budget).tolist() == kept


def test_a_budget_is_alive_after_the_video_steps() -> None:
    plan = policy(Even(), ("fastv", LastRow()), ratio=0.5).plan(ramp(2, 4))
    assert plan.budget is not None and plan.keep.all()
    assert plan.scores is None


def test_a_stage_may_choose_its_query_rows_and_its_layer() -> None:
    asked: list[Any] = []

    def choose(tokens: LayerTokens) -> Keep:
        rows = tokens.attention(torch.tensor([0]), of="next")
        asked.append((tuple(rows.shape), tokens.layer, tokens.layers))
        return Keep(rows.mean(dim=(0, 1)) > 4)

    stage = answering(prune_layer=choose, layers=(2,))
    assert rank_layer(stage, ATTENTION, layer=5, layers=12).tolist() == list(range(6))
    assert asked == [((2, 1, 6), 5, 12)]


def test_a_merge_keeps_its_targets() -> None:
    stage = answering(prune_layer=Merge.assign(torch.tensor([0, 0, -1, 3, 3, 3])), layers=(2,))
    assert rank_layer(stage, ATTENTION).tolist() == [0, 3]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (None, "returned nothing; return Scores or Keep or Merge"),
        (Budget(share=torch.ones(2)), "must return Scores or Keep or Merge, got Budget"),
        (Scores(torch.ones(6)), "nothing says how many tokens stay"),
        (Scores(torch.ones(5)), r"shape \(6\), got \(5,\)"),
        (Scores(torch.full((6,), torch.nan)), "NaN or -inf"),
        (Keep(torch.zeros(6, dtype=torch.bool)), "drops every visual token"),
        (forge(Keep, mask=torch.ones(6)), "must be bool"),
        (Merge(torch.tensor([0, 1]), torch.tensor([1, 0])), "a Merge target must list itself|has a chain"),
        (Merge(torch.tensor([7]), torch.tensor([7])), "must be in 0 to 5"),
    ],
)
def test_a_bad_answer_is_refused(plan: Any, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        rank_layer(answering(prune_layer=plan, layers=(2,)), ATTENTION)


def rows(*scores: float) -> Tensor:
    return torch.tensor(scores).view(1, 1, -1)


def test_heads_are_averaged_not_summed_away() -> None:
    assert rank_layer(LastRow(), rows(0.1, 0.3, 0.2), count=2).tolist() == [1, 2]
