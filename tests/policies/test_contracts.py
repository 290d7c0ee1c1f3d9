"""Every built-in stage obeys the laws of a stage."""

import pytest

from vidsieve.framework.stage import Stage
from vidsieve.policies.dycoke import DynamicKV, TemporalMerge
from vidsieve.policies.fastv import FastV
from vidsieve.policies.pyramiddrop import PyramidDrop
from vidsieve.policies.random_scores import RandomScores
from vidsieve.policies.sparsevlm import SparseVLM, SparseVLMByRank
from vidsieve.policies.top_k import TopK
from vidsieve.policies.uniform_budget import UniformBudget
from vidsieve.policies.uniform_frames import UniformFrames
from vidsieve.policies.vidcom2 import FrameBudget, TokenScore
from vidsieve.testing import StageContract


class TestFrameBudget(StageContract):
    def make_stage(self) -> Stage:
        return FrameBudget()


class TestFrameBudgetReleased(StageContract):
    def make_stage(self) -> Stage:
        return FrameBudget(counting="released")


class TestTokenScore(StageContract):
    def make_stage(self) -> Stage:
        return TokenScore()


class TestTemporalMerge(StageContract):
    def make_stage(self) -> Stage:
        return TemporalMerge(drop_ratio=0.6)


class TestTemporalMergeReleased(StageContract):
    shapes = ((5, 9, 8), (6, 9, 16), (8, 16, 8), (9, 16, 32))

    def make_stage(self) -> Stage:
        return TemporalMerge(drop_ratio=0.6, windows="released")


class TestTopK(StageContract):
    def make_stage(self) -> Stage:
        return TopK()


class TestTopKFixed(StageContract):
    def make_stage(self) -> Stage:
        return TopK(keep_ratio=0.3)


class TestUniformBudget(StageContract):
    def make_stage(self) -> Stage:
        return UniformBudget()


class TestRandom(StageContract):
    def make_stage(self) -> Stage:
        return RandomScores()


class TestUniformFrames(StageContract):
    def make_stage(self) -> Stage:
        return UniformFrames()


class TestFastV(StageContract):
    def make_stage(self) -> Stage:
        return FastV()


class TestPyramidDrop(StageContract):
    def make_stage(self) -> Stage:
        return PyramidDrop()


class TestSparseVLM(StageContract):
    def make_stage(self) -> Stage:
        return SparseVLM()


class TestSparseVLMByRank(StageContract):
    def make_stage(self) -> Stage:
        return SparseVLMByRank()


@pytest.mark.parametrize("stage", [DynamicKV(), TokenScore(), UniformBudget(), RandomScores()])
def test_a_stage_that_removes_nothing_from_the_prompt_leaves_all(stage: Stage) -> None:
    from vidsieve.framework.records import VideoShape

    assert stage.attainable(VideoShape(8, 16, 28)) == (1.0, 1.0)
