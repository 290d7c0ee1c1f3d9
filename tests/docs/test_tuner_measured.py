"""The experiment on the tuner: its tables follow from the committed numbers, and its replay still runs."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from doc_pages import ROOT

SCRIPTS = ROOT / "scripts" / "experiments"
DATA = SCRIPTS / "data"
MODELS = ("qwen2-vl-tiny", "llava-onevision-tiny")


@pytest.fixture(scope="module")
def scripts() -> Any:
    """The experiment's scripts, imported as they import one another."""
    before = set(sys.modules)
    sys.path.insert(0, str(SCRIPTS))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    sys.path.remove(str(SCRIPTS))
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == SCRIPTS:
            del sys.modules[name]


TABLES = [("replay", "tables"), ("ablations", "tables"), ("coverage", "interval_coverage")]


@pytest.mark.parametrize(("name", "module"), TABLES)
def test_tables_follow_from_the_committed_numbers(scripts: Any, name: str, module: str) -> None:
    told = json.loads((DATA / f"{name}.json").read_text())
    assert scripts(module).written(told) == (DATA / f"{name}.md").read_text()


@pytest.mark.parametrize("model", MODELS)
def test_a_matrix_is_whole_and_of_the_grid_in_the_policy_files(scripts: Any, model: str) -> None:
    truth = scripts("replay").truth_of(model)
    matrix = truth.matrix

    assert matrix.p_gold.shape == (len(truth.cells) + 1, len(matrix.header["examples"]))
    assert set(np.unique(matrix.correct)) == {0.0, 1.0}
    assert matrix.p_gold.min() >= 0 and matrix.p_gold.max() <= 1
    for row, cell in enumerate(truth.cells, start=1):
        assert np.abs(matrix.attained[row] - cell.ratio).max() < 0.02, cell
    assert (DATA / f"{model}.npz").stat().st_size < 3 << 20


def test_between_recorded_ratios_outcomes_come_from_both_and_beyond_them_from_the_nearest(scripts: Any) -> None:
    truth = scripts("replay").truth_of(MODELS[0])
    policy = scripts("grid").policies()["vidcom2"]
    low, middle, high = (truth.outcomes(policy.with_(retention_ratio=ratio)) for ratio in (0.4, 0.45, 0.5))

    from_low, from_high = (middle[0] == side[0] for side in (low, high))
    assert (from_low | from_high).all()
    assert abs(from_high.mean() - 0.5) < 0.1
    lowest, below = (truth.outcomes(policy.with_(retention_ratio=ratio)) for ratio in (0.1, 0.01))
    assert (below[0] == lowest[0]).all()


def test_a_replayed_search_is_the_tuners_own_and_is_judged_by_the_truth(scripts: Any) -> None:
    replay = scripts("replay")
    truth = replay.truth_of(MODELS[1])
    speedup = replay.speedups(truth)[1]
    few = {"trials": 3, "examples": 40, "rerank_examples": 20, "heldout_examples": 20}

    row = replay.run(MODELS[1], speedup, replay.Method("short", change=few), seed=0)

    best, accuracy = truth.best(1 / speedup, [policy.name for policy in replay.searched()])
    assert truth.latency(best) * speedup <= 1 + 1e-9
    assert accuracy >= truth.accuracy(best.with_(retention_ratio=0.9 * best.retention_ratio)) - 0.02
    assert row["regret"] >= row["choice"] - 1e-9
    assert row["meets"] == (row["over"] <= 1e-9)
    assert 2 * 40 <= row["search_examples"] <= 4 * 40 + 6 * 20


def test_a_better_pick_has_less_regret_and_one_that_misses_is_cut_to_its_limit(scripts: Any) -> None:
    replay = scripts("replay")
    truth = replay.truth_of(MODELS[0])
    policy, speedup = scripts("grid").policies()["vidcom2"], replay.speedups(truth)[1]
    limit = truth.limit(policy, 1 / speedup)
    fits, early, misses = (
        replay.verdict(truth, speedup, policy.with_(retention_ratio=ratio)) for ratio in (limit, limit / 2, 2 * limit)
    )

    assert fits["meets"] and early["meets"] and not misses["meets"]
    assert fits["regret"] < early["regret"]
    assert misses["regret"] == pytest.approx(fits["regret"], abs=0.3)
    assert misses["over"] > 0.02


def test_replayed_splits_share_no_video_and_repeat_with_the_seed(scripts: Any) -> None:
    module = scripts("replay_bench")
    task = module.ReplayTask(scripts("replay").truth_of(MODELS[0]).matrix)
    search, heldout = task.examples("search", 100, seed=3), task.examples("heldout", 100, seed=3)

    assert not {e.group for e in search} & {e.group for e in heldout}
    assert [e.id for e in search] == [e.id for e in task.examples("search", 100, seed=3)]
    assert [e.question for e in search] != [e.question for e in task.examples("search", 100, seed=4)]
    assert len({e.id for e in search}) == 100
