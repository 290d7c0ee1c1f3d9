"""Step 9: how many visual tokens go on after a layer, and which."""

from typing import Any

import pytest
import torch
from framework.kit import Best, Even, Norm, answering, forge, policy, ramp
from torch import Tensor

from vidsieve.framework.errors import PlanError, PolicyError, RetentionError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.planning.attainable import LayerCounts, prune_points
from vidsieve.framework.plans import Budget, Keep, Merge, Scores
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import LayerTokens, VideoShape
from vidsieve.framework.stage import Stage, tunable
from vidsieve.testing import rank_layer


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


def counted(made: Policy, baseline: int, offered: int, layers: int) -> LayerCounts:
    """A video taken through a whole decoder, every stage leaving what it was told to."""
    counts = LayerCounts(made, baseline=baseline, offered=offered, layers=layers)
    for point in prune_points(made, layers):
        _, count = counts.ask(point)
        assert count is not None
        counts.leave(count)
    counts.enter(layers - 1)
    return counts


@pytest.mark.parametrize(
    ("layers", "layer", "ratio", "share"),
    # the keep shares at which FastV's mean over layers meets these ratios, K = 2 and 3
    [(28, 1, 0.25, 0.1923), (28, 1, 0.15, 0.0846), (28, 2, 0.25, 0.16), (32, 1, 0.25, 0.2), (32, 2, 0.15, 0.0621)],
)
def test_the_mean_over_layers_meets_the_ratio(layers: int, layer: int, ratio: float, share: float) -> None:
    found = counted(layered(ratio, layer=layer), 6272, 6272, layers)
    assert found.entered[-1] / 6272 == pytest.approx(share, abs=5e-4)
    assert found.ratio <= ratio < found.ratio + 1 / 6272


def test_earlier_removals_leave_more_for_the_layer_stage() -> None:
    # half of 100 enter every layer; 30 % over 10 layers is 300, 100 of them are spent after two layers
    assert counted(layered(0.3), 100, 50, 10).entered == [50, 50] + [25] * 8


@pytest.mark.parametrize(("ratio", "count"), [(1.0, 50), (0.6, 50), (0.5, 50), (0.1, 1)])
def test_the_count_stays_between_one_and_what_is_alive(ratio: float, count: int) -> None:
    assert counted(layered(ratio), 100, 50, 10).entered[-1] == count


def test_a_ratio_below_what_the_first_layers_spend_is_refused_with_the_lowest() -> None:
    with pytest.raises(RetentionError, match=r"after layer 1 of 10 reaches 0\.208 at least"):
        counted(layered(0.15), 100, 100, 10)


@pytest.mark.parametrize(
    ("after", "words"), [((3,), "no layer comes after"), ((2, 1), "must not fall"), ((), "must not fall")]
)
def test_points_that_are_not_there_are_refused(after: tuple[int, ...], words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        prune_points(policy(answering(prune_layer=None, layers=after), ratio=0.5), 4)


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


def test_the_closer_is_called_with_its_setting_solved() -> None:
    made = layered(0.3)
    stage, count = LayerCounts(made, baseline=100, offered=100, layers=10).ask(prune_points(made, 10)[0])
    assert isinstance(stage, LastRow)
    assert count == 12  # (0.3 * 10 * 100 - 200) / 8
    assert stage.keep_ratio == pytest.approx(0.12, abs=0.01)


def test_a_fixed_stage_has_its_own_count() -> None:
    assert counted(layered(None, 0.2), 100, 40, 10).entered == [40, 40] + [8] * 8


class Pyramid(LastRow):
    """Leaves a share of the first offer after its first point, and the share of that after its second."""

    after: tuple[int, ...] = (1, 5)

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return self.after

    def leaves(self, offered: int, num_layers: int) -> tuple[int, ...]:
        assert self.keep_ratio is not None
        return tuple(int(offered * self.keep_ratio ** (turn + 1)) for turn in range(len(self.after)))


def test_several_prune_points_of_one_stage_are_solved_together() -> None:
    found = counted(policy(Pyramid(), ratio=0.4), 1000, 1000, 10)
    # 2 + 4 r + 4 r² = 4 at r = 0.366, and 366 + 134 is half of 1000
    assert found.entered == [1000] * 2 + [366] * 4 + [134] * 4
    assert found.ratio == 0.4


def test_a_stage_behind_the_closer_is_reckoned_with() -> None:
    # the closer is the last in the file, not the deepest
    made = policy(("deep", LastRow(keep_ratio=0.5, layer=5)), ("shallow", LastRow(layer=1)), ratio=0.5)
    found = counted(made, 1000, 1000, 10)
    # at layer 5 half of the 1000 - x already gone stays: 2 + 4 x + 4 x / 2 = 5
    assert found.entered == [1000] * 2 + [500] * 4 + [250] * 4


def test_a_closer_behind_another_stage_has_what_that_left() -> None:
    made = policy(("first", LastRow(keep_ratio=0.5, layer=1)), ("last", LastRow(layer=5)), ratio=0.45)
    assert counted(made, 1000, 1000, 10).entered == [1000] * 2 + [500] * 4 + [125] * 4


def test_a_closer_that_names_no_setting_leaves_one_count_after_all_its_points() -> None:
    made = policy(answering(prune_layer=None, layers=(1, 5)), ratio=0.4)
    assert counted(made, 1000, 1000, 10).entered == [1000] * 2 + [250] * 8


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


def test_merged_tokens_may_move_behind_the_others_in_an_order_of_their_own() -> None:
    into = Merge.assign(torch.tensor([0, 1, 1, 3, 3, 5]))
    moved = Merge(into.source, into.target, behind=torch.tensor([3, 1]))
    assert rank_layer(answering(prune_layer=moved, layers=(2,)), ATTENTION).tolist() == [0, 5, 3, 1]


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
        (Merge(torch.tensor([0]), torch.tensor([0]), behind=torch.tensor([1])), "behind must name targets"),
        (Merge(torch.tensor([0]), torch.tensor([0]), behind=torch.tensor([0, 0])), "each once"),
    ],
)
def test_a_bad_answer_is_refused(plan: Any, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        rank_layer(answering(prune_layer=plan, layers=(2,)), ATTENTION)


def rows(*scores: float) -> Tensor:
    return torch.tensor(scores).view(1, 1, -1)


def test_heads_are_averaged_not_summed_away() -> None:
    assert rank_layer(LastRow(), rows(0.1, 0.3, 0.2), count=2).tolist() == [1, 2]
