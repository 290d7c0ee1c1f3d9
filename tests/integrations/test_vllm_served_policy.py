"""What a server may run, and that it keeps the number of tokens it promised."""

import logging
from pathlib import Path

import pytest
import torch

from vidsieve import load_policy
from vidsieve.framework import registry
from vidsieve.framework.errors import PolicyFileError, UnknownNameError, UsageError
from vidsieve.framework.policy.policy import Policy
from vidsieve.integrations.vllm.served_policy import ServedPolicy, reasons_against, remarks_on, served_policy
from vidsieve.testing.samples import video_features
from vidsieve.testing.stage_contract import hostile_features

GRID = (8, 4, 6)
BOTH = frozenset({"original", "trained"})


def servable() -> list[str]:
    return sorted(
        name
        for name in registry.default().policies
        if not (policy := load_policy(name)).is_empty and not reasons_against(policy, positions=BOTH)
    )


def test_what_can_be_served_is_known() -> None:
    assert servable() == [
        "divprune", "evs", "llava-scissor", "pixel-change", "random", "tome", "uniform-frames", "vidcom2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fastv", "'fastv.prune' works inside the language model"),
        ("dycoke", "'dycoke.kv' works inside the language model"),
        ("cdpruner", "reads question, which is not at hand there"),
        ("fastvid", "reads vision_attention"),
        ("holitom", "depends on what the video shows"),
        ("vidcom2-released", "may decide counts by what the video shows"),
    ],
)
def test_what_cannot_be_served_says_why(name: str, reason: str) -> None:
    assert any(reason in text for text in reasons_against(load_policy(name), positions=BOTH))


def test_a_model_that_numbers_anew_serves_compact_alone() -> None:
    [reason] = reasons_against(load_policy("vidcom2"), positions=frozenset({"compact"}))
    told = "it has `positions: original`; this model can be served with `positions: compact`, a line of its file"
    assert reason.startswith(told)


def test_a_model_that_encodes_all_frames_serves_no_choice_of_frames() -> None:
    [reason] = reasons_against(load_policy("pixel-change"), positions=BOTH, frames=False)
    assert reason.startswith("stage 'pixel-change' chooses frames before they are encoded")
    assert not reasons_against(load_policy("vidcom2"), positions=BOTH, frames=False)


@pytest.mark.parametrize("name", servable())
def test_a_choice_by_the_place_in_the_prompt_is_remarked_on(name: str) -> None:
    remarks = remarks_on(load_policy(name))
    assert [("as if it were the first" in text) for text in remarks] == ([True] if name == "random" else [])


def test_a_video_out_of_reach_stays_whole_in_the_encoder() -> None:
    served = ServedPolicy(load_policy("evs", retention_ratio=0.1))
    features = video_features(2, 24, 16).flatten(0, 1)
    kept, index = served.rows(features, (2, 4, 6), dim=16)
    assert torch.equal(kept, features) and index.tolist() == list(range(48))


@pytest.mark.parametrize("name", servable())
@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_rows_are_as_many_as_promised_whatever_is_shown(name: str, ratio: float) -> None:
    served = ServedPolicy(load_policy(name, retention_ratio=ratio))
    features = video_features(8, 24, 16)
    for shown in hostile_features(features):
        units = served.units(shown.unflatten(1, (1, 24))[:, :, None])
        rows = shown if units is None else shown[units]
        kept, index = served.rows(rows.flatten(0, 1), GRID, dim=16, units=units)
        assert len(kept) == len(index) == served.length(GRID)
        assert torch.equal(index, index.unique())
        assert index.max() < 8 * 24


def test_rows_behind_the_tokens_go_the_same_way() -> None:
    served = ServedPolicy(load_policy("vidcom2", retention_ratio=0.25))
    features = video_features(8, 24, 16).flatten(0, 1)
    levels = torch.arange(len(features), dtype=torch.float32)[:, None].expand(-1, 3)
    kept, index = served.rows(torch.cat([features, levels], dim=1), GRID, dim=16)
    alone, same = served.rows(features, GRID, dim=16)
    assert torch.equal(index, same)
    assert torch.equal(kept[:, :16], alone)
    assert torch.equal(kept[:, 16], index.float())


@pytest.mark.parametrize("promised", [30, 60])
def test_a_broken_promise_is_mended_in_order_and_told(
    promised: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served = ServedPolicy(load_policy("vidcom2", retention_ratio=0.25))
    monkeypatch.setattr(Policy, "kept_tokens", lambda self, shape: promised)
    features = video_features(8, 24, 16).flatten(0, 1)
    with caplog.at_level(logging.WARNING, logger="vllm.vidsieve"):
        kept, index = served.rows(features, GRID, dim=16)
    assert len(kept) == len(index) == promised
    assert torch.equal(index, index.sort().values)
    assert torch.equal(kept, features[index])
    assert f"left 48 visual tokens where {promised} were promised" in caplog.text


def test_the_environment_names_the_policy(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(load_policy("evs").to_yaml())
    assert served_policy({}) is None
    assert served_policy({"VIDSIEVE_POLICY": "none"}) is None
    found = served_policy({"VIDSIEVE_POLICY": str(file), "VIDSIEVE_RETENTION": "0.4"})
    assert found is not None and found.policy.retention_ratio == 0.4
    assert "policy 'evs' (" in found.described and "0.4 of the visual tokens" in found.described


@pytest.mark.parametrize(
    ("environment", "error", "words"),
    [
        ({"VIDSIEVE_POLICY": "vidcom3"}, UnknownNameError, "vidcom2"),
        ({"VIDSIEVE_POLICY": "/nowhere/policy.yaml"}, Exception, "/nowhere/policy.yaml"),
        ({"VIDSIEVE_RETENTION": "0.5"}, UsageError, "VIDSIEVE_POLICY names no policy"),
        ({"VIDSIEVE_POLICY": "evs", "VIDSIEVE_RETENTION": "a lot"}, UsageError, "must be a number"),
        ({"VIDSIEVE_POLICY": "evs", "VIDSIEVE_RETENTION": "25"}, UsageError, "25"),
    ],
)
def test_a_wrong_environment_is_told(environment: dict[str, str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        served_policy(environment)


def test_a_faulty_file_lists_its_faults(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("format: 1\nname: bad\nstages:\n- {use: evs.selekt}\n")
    with pytest.raises(PolicyFileError, match=r"evs\.select"):
        served_policy({"VIDSIEVE_POLICY": str(file)})
