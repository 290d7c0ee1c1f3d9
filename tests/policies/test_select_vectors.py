"""DivPrune, CDPruner, DART, FrameFusion and STTM choose what the released functions chose on the same inputs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vidsieve.framework.plans import Merge, Scores, melt
from vidsieve.policies.cdpruner import CDPruner
from vidsieve.policies.dart import DART
from vidsieve.policies.divprune import DivPrune
from vidsieve.policies.framefusion import melting, runs
from vidsieve.policies.sttm import Pyramid, lasting
from vidsieve.testing import rank_layer
from vidsieve.testing.samples import video_tokens

with np.load(Path(__file__).parents[1] / "data" / "vectors" / "select.npz") as _file:
    RECORDED = {name: torch.from_numpy(np.array(_file[name])) for name in _file.files}


def cases(method: str, part: str) -> list[str]:
    return sorted(name for name in RECORDED if name.startswith(f"{method}/") and f"/{part}" in name)


def chosen(stage: Any, name: str, **fields: Any) -> list[int]:
    features = RECORDED[f"{name.rpartition('/')[0]}/features"]
    record = video_tokens(*features.shape, features=features, token_budget=int(name.rpartition("/k")[2]), **fields)
    return stage.select_tokens(record).mask.flatten().nonzero().squeeze(1).tolist()


@pytest.mark.parametrize("name", cases("divprune", "k"))
def test_divprune(name: str) -> None:
    assert chosen(DivPrune(), name) == RECORDED[name].tolist()


@pytest.mark.parametrize("name", cases("cdpruner", "k"))
def test_cdpruner(name: str) -> None:
    scores = Scores(RECORDED[f"{name.rpartition('/')[0]}/scores"])
    assert chosen(CDPruner(), name, scores=scores) == RECORDED[name].tolist()


@pytest.mark.parametrize("name", cases("dart", "kept"))
def test_dart(name: str) -> None:
    case = name.rpartition("/")[0]
    hidden, keys = RECORDED[f"{case}/hidden"], RECORDED[f"{case}/keys"]
    stage = DART(keep_ratio=float(RECORDED[f"{case}/ratio"]), counting="released")
    visual = 22
    shown = {"hidden": hidden[:visual], "text": hidden[visual:], "keys": (keys[:, :visual], keys[:, visual:])}
    found = rank_layer(stage, torch.zeros(1, 1, visual), count=stage.leaves(visual, 32)[0], **shown)
    assert found.tolist() == RECORDED[name].tolist()


@pytest.mark.parametrize("name", cases("framefusion", "kept"))
def test_framefusion(name: str) -> None:
    case = name.rpartition("/")[0]
    states, place = RECORDED[f"{case}/states"], RECORDED[f"{case}/place"]
    cost, similarity = RECORDED[f"{case}/setting"].tolist()
    into = runs(states, place, similarity, melting(len(states), cost * len(states)))
    source = torch.arange(len(states))
    step, _ = melt(Merge(source, into, weight=torch.ones(len(states))), torch.ones(len(states)))
    kept: Tensor = step.targets.nonzero().squeeze(1)
    assert kept.tolist() == RECORDED[name].tolist()
    assert torch.allclose(step.apply(states)[kept], RECORDED[f"{case}/merged"], atol=1e-5)


@pytest.mark.parametrize("name", cases("sttm", "kept"))
def test_sttm(name: str) -> None:
    case = name.rpartition("/")[0]
    states = RECORDED[f"{case}/states"]
    similarity, temporal, root_level = RECORDED[f"{case}/setting"].tolist()
    grid, rows = tuple(states.shape[:3]), states.flatten(0, 2)
    found = Pyramid(rows, torch.arange(len(rows)), grid, int(root_level)).nodes(similarity)
    label = lasting(found, torch.arange(len(rows)), grid, temporal)
    into = found.first[label][found.node]
    step, _ = melt(Merge(torch.arange(len(rows)), into, weight=found.part), torch.ones(len(rows)))
    kept: Tensor = step.targets.nonzero().squeeze(1)
    assert kept.tolist() == RECORDED[name].tolist()
    assert torch.allclose(step.apply(rows)[kept], RECORDED[f"{case}/merged"], atol=1e-5)


def test_the_recorded_set_covers_every_method() -> None:
    counts = {method: len(cases(method, part)) for method, part in (("divprune", "k"), ("cdpruner", "k"))}
    counts |= {method: len(cases(method, "kept")) for method in ("dart", "framefusion", "sttm")}
    assert counts == {"divprune": 6, "cdpruner": 5, "dart": 6, "framefusion": 4, "sttm": 4}
