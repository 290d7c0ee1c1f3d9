"""The policies reproduce recorded outputs of the official VidCom², DyCoke, FastV, PyramidDrop and SparseVLM code."""

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "data" / "vectors"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_vectors", ROOT / "scripts" / "check_vectors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


script = load_script()
CHECKS = list(script.checks(FOLDER))


@pytest.mark.parametrize("check", CHECKS, ids=[check.name for check in CHECKS])
def test_recorded_choices_are_reproduced(check) -> None:
    assert check.faults() == []


def test_the_recorded_set_covers_every_method_and_a_failure() -> None:
    names = [check.name for check in CHECKS]
    parts = ["vidcom2 m196", "vidcom2 edge_static", "adapter_qwen", "dycoke ttm_f4", "ttmfix_", "kv_", "e2e_"]
    parts += ["fastv d_", "fastv e2e", "pyramiddrop odd", "sparsevlm cluster", "sparsevlm score", "sparsevlm main_v1"]
    for part in parts:
        assert any(part in name for name in names), part


def changed(source: Path, target: Path, name: str, change) -> Path:
    """A copy of the recorded set with some arrays changed."""
    shutil.copytree(source, target)
    with np.load(target / f"{name}.npz") as file:
        arrays = dict(file)
    change(arrays)
    np.savez_compressed(target / f"{name}.npz", **arrays)
    return target


@pytest.mark.parametrize(
    ("name", "key", "says"),
    [
        ("vidcom2", "m49_T4_mild_R25/kept", "kept"),
        ("vidcom2", "m49_T4_mild/v", "v is off"),
        ("dycoke", "ttm_f8_K0.7/kept_idx", "kept"),
        ("dycoke", "kv_small_P0.7/step2/kv_sorted", "step 2"),
        ("in-llm", "fastv_hf/a_even_r50/kept_vis", "kept"),
        ("in-llm", "fastv_hf/e2e/dec1_hidden", "decode step 1 is off"),
        ("in-llm", "pdrop/odd/kept_abs", "kept"),
        ("in-llm", "svlm_cluster/main/c1/center_idx", "centres"),
        ("in-llm", "svlm_score/main_v1/l6/rel", "score is off"),
        ("in-llm", "svlm_e2e/main_v1_small/merged1", "melted 1 is off"),
    ],
)
def test_a_changed_vector_is_noticed(tmp_path: Path, capsys, name: str, key: str, says: str) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[key] = arrays[key] + np.array(1, dtype=arrays[key].dtype)

    folder = changed(FOLDER, tmp_path / "vectors", name, change)
    assert script.main([str(folder)]) == 1
    out = capsys.readouterr().out
    assert "DIFFERS" in out
    assert says in out


def test_another_input_than_the_recorded_one_is_noticed() -> None:
    x = script.dycoke_input({"frames": 2, "tokens": 3, "dim": 4, "seed": 1})
    assert "another hash" in script._wrong_input(x, "0" * 64)[0]
