"""Segmenting and merging reproduce recorded outputs of the official code; see tests/data/vectors/README.md."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from policies.segment_inputs import attention, digest, scenes

from vidsieve import load_policy
from vidsieve.framework.plans import Merge, Segments, melt
from vidsieve.framework.records import VideoTokens
from vidsieve.policies.fastvid import FastVIDMerge
from vidsieve.policies.holitom import HoliTomMerge, HoliTomSegments, saved
from vidsieve.policies.llava_scissor import ScissorMerge
from vidsieve.policies.prunevid import DpcKnnSegments
from vidsieve.policies.shared.dpc_knn import density_peaks
from vidsieve.policies.similarity_cuts import SimilarityCuts
from vidsieve.policies.static_merge import StaticMerge
from vidsieve.testing import video_tokens

FOLDER = Path(__file__).parents[1] / "data" / "vectors"
CASES: dict[str, dict[str, Any]] = json.loads((FOLDER / "segments.json").read_text())


def each(method: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [name for name in CASES if name.startswith(f"{method}/")])


def recorded(name: str, what: str) -> torch.Tensor:
    with np.load(FOLDER / "segments.npz") as file:
        return torch.from_numpy(file[f"{name}/{what}"])


def shown(name: str, **fields: Any) -> VideoTokens:
    case = CASES[name]
    x = scenes(case["lengths"], case["tokens"], case["dim"], case["seed"])
    assert digest(x) == case["sha256"], "another input than the recorded one"
    return video_tokens(*x.shape, features=torch.from_numpy(x), **fields)


def sizes(labels: torch.Tensor) -> list[int]:
    return labels.bincount().tolist()


def rows_of(plan: Merge, record: VideoTokens) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Places, features and sizes of what is left."""
    step, weight = melt(plan, record.weight.flatten())
    places = step.targets.nonzero().squeeze(1)
    return places, step.apply(record.features.flatten(0, 1))[places], weight[places]


def same_rows(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Which row of `other` each row of `one` is, whatever their order; fails unless each is there once."""
    assert one.shape == other.shape
    far, where = torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    assert far.max() < 1e-5
    assert sorted(where.tolist()) == list(range(len(one)))
    return where


@each("evs")
def test_evs_keeps_what_vllm_keeps(name: str) -> None:
    policy = load_policy("evs", settings={"evs.select.drop_ratio": CASES[name]["q"]})
    keep = policy.plan(shown(name).features).keep
    assert keep.flatten().nonzero().squeeze(1).tolist() == recorded(name, "kept").tolist()


@each("tome")
def test_a_round_of_tome_is_the_official_matching(name: str) -> None:
    record, case = shown(name), CASES[name]
    plan = load_policy("tome", retention_ratio=1 - case["r"] / case["tokens"]).plan(record.features)
    for frame, (features, size) in enumerate(zip(recorded(name, "features"), recorded(name, "size"), strict=True)):
        here = plan.index // case["tokens"] == frame
        where = same_rows(plan.features[here], features)
        assert torch.equal(plan.weight[here], size[where])


@each("prunevid")
def test_prunevid_cuts_and_melts_as_its_code_does(name: str) -> None:
    record = shown(name)
    labels = DpcKnnSegments(segment_ratio=CASES[name]["segment_ratio"]).segment_frames(record).labels
    assert sizes(labels) == recorded(name, "windows").tolist()
    record = shown(name, segments=Segments(labels))
    places, features, weight = rows_of(StaticMerge().merge_tokens(record), record)
    mask = recorded(name, "static_mask")
    starts = torch.tensor([0, *sizes(labels)[:-1]]).cumsum(0)
    still = (starts.unsqueeze(1) * mask.shape[1] + torch.arange(mask.shape[1]))[mask]
    assert places[weight > 1].tolist() == still.tolist()
    assert torch.allclose(features[weight > 1], recorded(name, "static"), atol=1e-5)


@each("prunevid")
def test_prunevid_clusters_as_its_code_does(name: str) -> None:
    record = shown(name)
    mask = recorded(name, "static_mask")
    lengths = recorded(name, "windows").tolist()
    moving = ~mask.repeat_interleave(torch.tensor(lengths), dim=0)
    found = clusters(record.features, moving)
    same_rows(found, recorded(name, "dynamic"))
    means = torch.stack([part.mean(dim=0) for part in record.features.split(lengths)])
    same_rows(clusters(means, mask), recorded(name, "static_merged"))


def clusters(points: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Means of half as many clusters of each row, of those with more than 14 points, as PruneVid counts."""
    offered = which.sum(dim=1)
    counts = torch.where(offered > 14, offered // 2, offered)
    group = torch.where(which, torch.arange(len(which)).unsqueeze(1), -1)
    joins = density_peaks(points, group, counts, 7).joins
    first = torch.arange(len(joins)).unsqueeze(1) * joins.shape[1]
    plan = Merge.assign(torch.where(joins < 0, -1, joins + first))
    record = video_tokens(*points.shape, features=points)
    return rows_of(plan, record)[1]


@each("holitom")
def test_holitom_cuts_and_clusters_as_its_code_does(name: str) -> None:
    record, tau = shown(name), CASES[name]["tau"]
    labels = HoliTomSegments(threshold=tau).segment_frames(record).labels
    windows = recorded(name, "windows")
    assert sizes(labels) == (windows[:, 1] - windows[:, 0] + 1).tolist()
    alike = torch.cosine_similarity(record.features[1:], record.features[:-1], dim=-1) > tau
    table = saved(alike)
    assert sum(int(table[end, end - start]) for start, end in windows.tolist()) == int(recorded(name, "saved"))
    first = video_tokens(1, *record.features.shape[1:], features=record.features[:1], token_budget=6)
    first = VideoTokens(**{**vars(first), "weight": torch.full((1, 20), 2.0)})
    places, features, _ = rows_of(HoliTomMerge().merge_tokens(first), first)
    assert places.tolist() == recorded(name, "places").tolist()
    assert torch.allclose(features, recorded(name, "density"), atol=1e-5)


@each("fastvid")
def test_fastvid_keeps_and_melts_as_its_code_does(name: str) -> None:
    record, case = shown(name), CASES[name]
    frames, tokens, _ = record.features.shape
    labels = SimilarityCuts(min_segments=case["c"], threshold=case["tau"]).segment_frames(record).labels
    assert sizes(labels) == recorded(name, "segments").tolist()
    signals = {"vision_attention": torch.from_numpy(attention(frames, tokens, case["seed"]))}
    budget = int(tokens * case["ratio"]) * frames
    record = shown(name, segments=Segments(labels), signals=signals, token_budget=budget)
    places, features, _ = rows_of(FastVIDMerge().merge_tokens(record), record)
    assert places.tolist() == recorded(name, "kept").tolist()
    # a segment of more than four frames has two anchor frames, whose anchors take one another in there
    alike = torch.tensor(sizes(labels))[labels[places // tokens]] <= 4
    assert torch.allclose(features[alike], recorded(name, "features")[alike], atol=1e-5)
    assert alike.any()


@each("scissor")
def test_scissor_connects_and_melts_as_its_code_does(name: str) -> None:
    record = shown(name)
    _, features, _ = rows_of(ScissorMerge(threshold=CASES[name]["tau"]).merge_tokens(record), record)
    same_rows(features, recorded(name, "features"))


def test_the_recorded_cases_are_not_trivial() -> None:
    assert {name.split("/")[0] for name in CASES} == {"evs", "tome", "prunevid", "holitom", "fastvid", "scissor"}
    assert any(recorded(name, "in_frames") < 16 * sum(CASES[name]["lengths"]) for name in CASES if "scissor" in name)
    assert any(max(recorded(name, "segments").tolist()) > 4 for name in CASES if "fastvid" in name)
    assert all(recorded(name, "static_mask").any() for name in CASES if "prunevid" in name)
