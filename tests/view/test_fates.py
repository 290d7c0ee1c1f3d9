"""What is drawn of a token is what became of it: kept, merged into which, left at which layer, read by which word."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from adapters.test_qwen2_vl import TestQwen2VL as Qwen2VL
from framework.kit import Best, Even, Norm, policy, ramp
from torch import Tensor

from vidsieve import applied, load_policy, show
from vidsieve.framework.errors import UsageError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep, KeepFrames, KeepKV, Merge
from vidsieve.framework.records import DecodeStep, FrameBatch, LayerTokens, VideoTokens
from vidsieve.framework.stage import Stage
from vidsieve.testing.adapter_decoder_kit import TopKV, TopLayer
from vidsieve.testing.adapter_kit import HALF, Row, policy_of, run
from vidsieve.view.overlay import Overlays, painted
from vidsieve.view.token_fates import Fate, fates_of

KIT = Qwen2VL()
UNITS, TOKENS = 4, 6


@pytest.fixture(scope="module")
def model() -> Any:
    return KIT.build_model()


@pytest.mark.parametrize("name", ["vidcom2", "dycoke", "tome", "visionzip", "holitom", "random", "prunevid"])
def test_kept_tokens_are_those_of_the_plan(name: str) -> None:
    torch.manual_seed(3)
    signals = {"vision_attention": torch.rand(8, 16), "pre_merger_features": torch.randn(8, 16, 24)}
    plan = load_policy(name, retention_ratio=0.4).plan(
        torch.randn(8, 16, 32), token_grid=(8, 4, 4), question=torch.randn(3, 32), signals=signals
    )
    fates = fates_of(plan.report)
    assert torch.equal(torch.from_numpy(fates.fate == Fate.KEPT), plan.keep)
    assert fates.prompt_tokens == plan.report.kept_tokens
    assert fates.attained_ratio == pytest.approx(plan.report.attained_ratio)
    melted = fates.target[fates.target >= 0]
    assert plan.keep.flatten()[torch.from_numpy(melted)].all()
    # every original that a kept token stands for is one that points at it
    if name == "tome":
        assert torch.equal(torch.from_numpy(1 + fates.sources).float()[plan.keep], plan.weight)


class Into(Stage):
    """Merge as `into` says: the flat number of each token's target, −1 to drop it."""

    into: tuple[int, ...]

    @hookimpl
    def merge_tokens(self, tokens: VideoTokens) -> Merge:
        return Merge.assign(torch.tensor(self.into).view(tokens.keep.shape))


class Shares(Stage):
    """Give most of token 1 to token 3, the rest to token 0; the others stay."""

    @hookimpl
    def merge_tokens(self, tokens: VideoTokens) -> Merge:
        weight = torch.tensor([1.0, 1.0, 1.0, 0.2, 0.9])
        return Merge(torch.tensor([0, 2, 3, 1, 1]), torch.tensor([0, 2, 3, 0, 3]), weight)


class Drops(Stage):
    """Drop the tokens with these flat numbers."""

    gone: tuple[int, ...]

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        mask = tokens.keep.clone()
        mask.view(-1)[list(self.gone)] = False
        return Keep(mask)


@pytest.mark.parametrize(
    ("stages", "target", "fate"),
    [
        ([Into(into=(0, 0, -1, 0))], [-1, 0, -1, 0], [5, 3, 2, 3]),
        # merged twice: what went into 1 ends in 0
        ([Into(into=(0, 1, 1, 3)), Into(into=(0, 0, -1, 3))], [-1, 0, 0, -1], [5, 3, 3, 5]),
        # merged into a token that was dropped: dropped as well
        ([Into(into=(0, 1, 1, 3)), Drops(gone=(1,))], [-1, -1, -1, -1], [5, 2, 2, 5]),
        ([Shares()], [-1, 3, -1, -1], [5, 3, 5, 5]),
    ],
    ids=["once", "twice", "into a dropped one", "shared out: the heavier part"],
)
def test_merged_tokens_point_at_the_token_they_end_in(stages: list[Stage], target: list[int], fate: list[int]) -> None:
    fates = fates_of(policy_of(*stages, ratio=0.5, exact=False).plan(torch.randn(2, 2, 8)).report)
    assert fates.target.reshape(-1).tolist() == target
    assert fates.fate.reshape(-1).tolist() == fate


class EvenStay(TopLayer):
    """After layers 0 and 2 the first and then the second of every three tokens of a frame leave."""

    after: tuple[int, ...] = (0, 2)
    solves = None

    @hookimpl
    def prune_layer(self, tokens: LayerTokens) -> Keep:
        return Keep(tokens.token % 3 != tokens.turn)


def test_tokens_leave_at_the_layer_where_the_stage_drops_them(model: Any) -> None:
    _, report = run(model, policy_of(EvenStay(), ratio=0.5, exact=False), KIT.make_inputs(model, Row(), Row(seed=1)))
    for video in (0, 1):
        fates = fates_of(report, video)
        place = np.arange(fates.fate.shape[1]) % 3
        expected = np.where(place == 0, 1, np.where(place == 1, 3, 4))
        assert (fates.depth == expected).all()
        assert (fates.fate == np.where(place == 2, Fate.KEPT, Fate.LATER)).all()
        assert tuple(fates.entered.tolist()) == report.layer_tokens[video]
    assert fates.points == (0, 2)


class FirstEntries(TopKV):
    """Read the first eight visual entries of each row."""

    @hookimpl
    def prune_kv(self, step: DecodeStep) -> KeepKV:
        rows = len(step.counts)
        return KeepKV(torch.arange(8).expand(rows, -1), torch.ones(rows, dtype=torch.bool))


@pytest.mark.parametrize("rows", [(Row(),), (Row(videos=2),), (Row(words=9), Row(seed=2))], ids=["one", "two", "batch"])
def test_each_word_read_the_frames_that_the_stage_let_it_read(model: Any, rows: tuple[Row, ...]) -> None:
    _, report = run(model, policy_of(FirstEntries()), KIT.make_inputs(model, *rows))
    fates = fates_of(report)
    assert fates.reads is not None
    assert fates.reads.shape == (3, UNITS)  # of four tokens the first comes out of the prompt
    assert np.allclose(fates.reads, [1, 2 / 6, 0, 0])
    if rows[0].videos == 2:
        second = fates_of(report, 1).reads
        assert second is not None and (second == 0).all()
    elif len(rows) == 2:
        assert np.allclose(fates_of(report, 1).reads, [1, 2 / 6, 0, 0])


def test_reads_count_what_the_report_counts(model: Any) -> None:
    _, report = run(model, policy_of(TopKV()), KIT.make_inputs(model, Row()))
    fates, layers = fates_of(report), 4
    assert fates.reads is not None and report.kv_ratio is not None
    behind = fates.reads.mean()  # every unit holds as many
    whole = TopKV().after + 1
    assert report.kv_ratio == pytest.approx((whole + (layers - whole) * behind) / layers)
    assert fates.is_whole


def test_beams_change_places_so_that_reads_are_not_told(model: Any) -> None:
    _, report = run(model, policy_of(FirstEntries()), KIT.make_inputs(model, Row()), num_beams=2)
    assert report.kv_ratio is not None
    assert fates_of(report).reads is None


class OddFrames(Stage):
    """Encode every other frame, beginning with the second."""

    def attainable(self, shape: Any) -> tuple[float, float]:
        return 0.5, 0.5

    @hookimpl
    def reduce_frames(self, frames: FrameBatch) -> KeepFrames:
        return KeepFrames(torch.arange(len(frames.pixels)) % 2 == 1)


def test_skipped_frames_are_marked_and_the_others_keep_their_place(model: Any) -> None:
    _, report = run(model, policy_of(OddFrames(), Norm(), Best(), ratio=0.25), KIT.make_inputs(model, Row()))
    fates = fates_of(report)
    assert (fates.fate[::2] == Fate.SKIPPED).all()
    assert (fates.fate[1::2] != Fate.SKIPPED).all()
    assert torch.equal(torch.from_numpy(fates.fate == Fate.KEPT), report.keeps[0])
    assert fates.score is not None and np.isnan(fates.score[::2]).all() and np.isfinite(fates.score[1::2]).all()
    assert "2 of 4 frames not encoded" in show(report).summaries[0]


def test_what_the_models_own_processor_left_out_is_no_token_of_the_policy() -> None:
    alive = torch.ones(3, 4, dtype=torch.bool)
    alive[1:, 2:] = False
    report = policy(Norm(), Best(), ratio=0.5).plan(ramp(3, 4), alive=alive).report
    fates = fates_of(report)
    assert torch.equal(torch.from_numpy(fates.fate != Fate.ABSENT), alive)
    assert (fates.baseline, fates.prompt_tokens) == (report.baseline_tokens, report.kept_tokens) == (8, 4)


def test_budget_and_scores_are_those_the_stages_made() -> None:
    features = ramp(3, 4)
    fates = fates_of(policy(Even(), Norm(), Best(), ratio=0.5).plan(features).report)
    assert fates.budget is not None and fates.score is not None
    assert np.allclose(fates.budget, 1 / 3)
    assert np.allclose(fates.score, [1.5, 5.5, 9.5])


def test_a_report_of_several_videos_shows_the_one_asked_for() -> None:
    made = policy(Norm(), Best(), ratio=0.5)
    report = type(made.plan(ramp(2, 4)).report).combine([made.plan(ramp(*shape)).report for shape in ((2, 4), (3, 3))])
    assert fates_of(report, 1).fate.shape == (3, 3)
    for video in (2, -1):
        with pytest.raises(UsageError, match=f"video {video}: the report of policy 'test' is of a call with 2 video"):
            fates_of(report, video)


def test_only_the_newest_report_of_a_block_holds_on_to_tensors(model: Any) -> None:
    inputs = KIT.make_inputs(model, Row())
    with applied(model, HALF) as block:
        for _ in range(2):
            model.generate(**inputs, max_new_tokens=1)
    old, new = block.reports
    assert new.traces and not old.traces
    assert (fates_of(old).fate == fates_of(new).fate).all()
    assert "only the newest report" in show(old).sentences[0]
    assert not show(new).sentences


def test_a_copied_report_shows_the_same(model: Any) -> None:
    _, report = run(model, policy_of(EvenStay(), FirstEntries(), ratio=0.5, exact=False), KIT.make_inputs(model, Row()))
    for other in (copy.deepcopy(report), pickle.loads(pickle.dumps(report))):
        assert (fates_of(other).depth == fates_of(report).depth).all()
        assert np.array_equal(fates_of(other).reads, fates_of(report).reads)
    # of the first eight, which are frame 0 and two of frame 1, what went through the layers is held
    assert np.allclose(fates_of(report).reads, [1, 0.25, 0, 0])


def test_nothing_is_laid_over_kept_tokens_and_something_over_all_others() -> None:
    torch.manual_seed(0)
    plan = load_policy("visionzip", retention_ratio=0.3).plan(
        torch.randn(4, 12, 32), token_grid=(4, 3, 4), signals={"vision_attention": torch.rand(4, 12)}
    )
    fates = fates_of(plan.report)
    for unit in range(4):
        overlay = Overlays(fates, side=10).of(unit)
        assert overlay.shape == (30, 40, 4)
        # the middle of each token, which no outline reaches
        middle: Tensor = torch.from_numpy(overlay[..., 3]).float().view(3, 10, 4, 10)[:, 5, :, 5]
        received = torch.from_numpy(fates.sources[unit]).view(3, 4) > 0
        kept = plan.keep[unit].view(3, 4)
        assert torch.equal(middle[kept & ~received], torch.zeros(int((kept & ~received).sum())))
        assert (middle[~kept] > 100).all()
    frame = np.full((60, 80, 3), 200, dtype=np.uint8)
    drawn = painted(frame, Overlays(fates, side=10).of(0))
    dark = drawn.reshape(3, 20, 4, 20, 3)[:, 10, :, 10].mean(axis=-1) < 190
    assert (dark | plan.keep[0].view(3, 4).numpy()).all()


def test_merged_tokens_and_their_target_share_a_colour() -> None:
    fates = fates_of(policy_of(Into(into=(0, 0, 2, 2)), ratio=0.5, exact=False).plan(torch.randn(1, 4, 8)).report)
    overlay = Overlays(fates, side=12).of(0)
    rows, columns = fates.grid
    tiles = overlay.reshape(rows, 12, columns, 12, 4).swapaxes(1, 2).reshape(4, 12, 12, 4)
    colours = [{tuple(pixel[:3]) for pixel in tile.reshape(-1, 4) if pixel[3] > 100} for tile in tiles]
    veil = {(38, 42, 48), (255, 255, 255)}
    assert (colours[0] & colours[1]) - veil and (colours[2] & colours[3]) - veil
    assert not ((colours[0] & colours[2]) - veil)
