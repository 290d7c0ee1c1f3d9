"""The examples of the hooks page obey the laws that every built-in stage obeys."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from doc_pages import ROOT

from vidsieve.framework.hookspecs import STAGE_HOOKS, PluginSpecs
from vidsieve.framework.planning.checks import check_keep_frames
from vidsieve.framework.plans import KeepFrames
from vidsieve.framework.records import FrameBatch
from vidsieve.framework.registry import Registry
from vidsieve.framework.stage import Stage
from vidsieve.testing import StageContract, kept_kv, rank_layer, select_kv

FOLDER = ROOT / "docs" / "examples" / "hooks"


def _stages(path: Path) -> list[type[Stage]]:
    spec = importlib.util.spec_from_file_location(f"hook_example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, Any] = {}
    module.register_stages(found.__setitem__)
    return list(found.values())


def _example(name: str) -> Stage:
    return _stages(FOLDER / f"{name}.py")[0]()


def _contract(name: str) -> type[StageContract]:
    return type(f"Test_{name}", (StageContract,), {"make_stage": lambda self: _example(name)})


TestSegmentFrames = _contract("segment_frames")
TestBudgetFrames = _contract("budget_frames")
TestScoreTokens = _contract("score_tokens")
TestSelectTokens = _contract("select_tokens")
TestMergeTokens = _contract("merge_tokens")
TestRegisterStages = _contract("register_stages")


def test_reduce_frames_skips_what_stands_still() -> None:
    pixels = torch.zeros(5, 2, 3, 4, 4)
    pixels[3:] = 1.0
    plan = _example("reduce_frames").reduce_frames(FrameBatch(pixels=pixels))
    assert isinstance(plan, KeepFrames)
    check_keep_frames("example", plan, 5, pixels)
    assert plan.mask.tolist() == [True, False, False, True, False]


def test_reduce_frames_keeps_as_many_as_asked_for() -> None:
    pixels = torch.zeros(5, 2, 3, 4, 4)
    pixels[3:] = 1.0
    plan = _example("reduce_frames").reduce_frames(FrameBatch(pixels=pixels, keep_budget=3))
    assert plan.mask.tolist() == [True, True, False, True, False]


def test_prune_layer_keeps_what_the_last_row_attends_to() -> None:
    attention = torch.tensor([[[0.1, 0.1, 0.1, 0.1], [0.0, 0.5, 0.1, 0.4]]])
    assert rank_layer(_example("prune_layer"), attention, count=2).tolist() == [1, 3]


def test_prune_kv_reads_the_most_attended_and_stays_with_them() -> None:
    stage = _example("prune_kv")
    attention = torch.full((2, 12), 0.01)
    attention[:, 4] = attention[:, 9] = attention[:, 6] = 0.3
    index, state = select_kv(stage, attention, (2, 10))
    assert index.tolist() == [0, 1, 4, 6, 9]
    again, _ = select_kv(stage, attention.flip(1), (2, 10), state)
    assert again.tolist() == index.tolist()


def test_evict_kv_keeps_the_entries_with_the_largest_values() -> None:
    values = torch.tensor([0.1, 3.0, 2.0, 0.2, 1.0])[None, None, :, None].expand(2, 2, 5, 4)
    stage, more = _example("evict_kv"), _example("evict_kv").model_copy(update={"keep_ratio": 0.7})
    assert kept_kv(stage, values=values, counts=(5, 3)) == [[1], [1]]
    assert kept_kv(more, values=values, counts=(5, 3)) == [[1, 2, 4], [1, 2]]


def test_every_hook_has_an_example_and_a_built_in_stage() -> None:
    hooks = {*STAGE_HOOKS, *(name for name in vars(PluginSpecs) if name.startswith("register_"))}
    assert {path.stem for path in FOLDER.glob("*.py")} == hooks
    used = {hook for stage in Registry().stages.values() for hook in stage.hooks()}
    assert used == set(STAGE_HOOKS)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_every_hook_example_is_tried_here(path: Path) -> None:
    known = {"reduce_frames", "prune_layer", "evict_kv", "prune_kv", "register_policies", "register_models"}
    contracts = {name.removeprefix("Test") for name in globals() if name.startswith("Test")}
    assert path.stem in known or path.stem.title().replace("_", "") in contracts
