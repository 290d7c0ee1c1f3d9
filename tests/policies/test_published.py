"""The published policies: they are found, they load, and they say what they do."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from vidsieve import load_policy
from vidsieve.framework.errors import PolicyError, UsageError
from vidsieve.framework.hookspecs import KV_HOOKS
from vidsieve.framework.planning.attainable import check_attainable
from vidsieve.framework.policy.file import read_policy
from vidsieve.framework.records import SIGNALS, VideoShape
from vidsieve.framework.registry import default
from vidsieve.testing.samples import video_features

STAGES = sorted(default().stages)
INSIDE = sorted(name for name in default().policies if load_policy(name).layer_stages)
KV_ALONE = sorted(
    name for name in default().policies if {*load_policy(name).hooks} and load_policy(name).hooks <= {*KV_HOOKS}
)
NAMES = sorted(set(default().policies) - set(INSIDE))


def shown(name: str, features: torch.Tensor) -> dict[str, Any]:
    """Whatever the stages of a policy cannot do without."""
    draw = torch.Generator().manual_seed(2)
    signals = {signal: torch.rand(features.shape[:2], generator=draw) for signal in SIGNALS}
    needed = load_policy(name).needs()
    side = int(features.shape[1] ** 0.5)
    found: dict[str, Any] = {"signals": {signal: signals[signal] for signal in SIGNALS if signal in needed}}
    if "token_grid" in needed:
        found["token_grid"] = (features.shape[0], side, side)
    return found


def test_every_stage_and_policy_is_found() -> None:
    assert {"dycoke.kv", "fastv.prune", "divprune.select", "top-k", "vidcom2.token-score"} <= set(STAGES)
    assert {"dycoke", "none", "pixel-change", "random", "vidcom2-released", "divprune"} <= set(NAMES)
    assert {"fastv", "pyramiddrop-released", "sparsevlm"} <= set(INSIDE)
    assert {"key-norm", "snapkv"} == set(KV_ALONE)


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_and_setting_explains_itself(name: str) -> None:
    stage = default().stages[name]
    assert (stage.__doc__ or "").splitlines()[0].endswith(".")
    assert all(info.description for info in stage.settings().values())


@pytest.mark.parametrize("name", NAMES + INSIDE)
def test_a_published_policy_survives_being_written_and_read(name: str) -> None:
    policy = load_policy(name)
    assert policy.name == name
    assert policy.summary
    again = read_policy(policy.to_yaml(), "again.yaml")
    assert again.hash == policy.hash


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("none", "pixel-change", *KV_ALONE)])
def test_a_published_policy_runs_as_it_stands(name: str) -> None:
    features = video_features(8, 16, 16)
    report = load_policy(name).plan(features, **shown(name, features)).report
    assert 0 < report.attained_ratio < 1


@pytest.mark.parametrize("name", INSIDE)
def test_a_policy_inside_the_language_model_says_it_did_not_run(name: str) -> None:
    policy = load_policy(name)
    report = policy.plan(video_features(8, 16, 16), layers=32).report
    shortens = any(bound.runs("select_tokens", "merge_tokens") for bound in policy.stages)
    assert (report.prompt_ratio < 1.0) == shortens
    assert report.not_run == tuple(bound.label for bound in policy.stages if bound.runs("prune_layer"))
    low, high = policy.attainable(VideoShape(8, 16, 32))
    assert 0 < low <= (policy.retention_ratio or high) <= high <= 1


def test_none_keeps_every_bit() -> None:
    features = video_features(3, 4, 5)
    policy = load_policy("none")
    assert policy.is_empty
    assert torch.equal(policy.plan(features).features, features.flatten(0, 1))


def test_released_forms_declare_what_sets_them_apart() -> None:
    for name in ("vidcom2", "dycoke"):
        assert load_policy(name).exact
        assert not load_policy(f"{name}-released").exact
    assert load_policy("dycoke-released").positions == "compact"
    assert {load_policy(name).positions for name in ("vidcom2", "vidcom2-released", "dycoke")} == {"original"}
    assert {load_policy(f"{name}-released").positions for name in ("pyramiddrop", "sparsevlm", "llava-scissor")} == {
        "compact"
    }
    inside = ("fastv", "pyramiddrop", "sparsevlm", "fastv-released")
    assert {load_policy(name).positions for name in inside} == {"original"}


def test_decode_stages_are_named_as_not_run_in_a_plan() -> None:
    assert load_policy("dycoke").plan(video_features(8, 16, 8)).report.not_run == ("dycoke.kv",)


@pytest.mark.parametrize("name", KV_ALONE)
def test_a_policy_of_the_cache_alone_leaves_the_prompt_as_it_is_and_says_it_did_not_run(name: str) -> None:
    policy = load_policy(name)
    report = policy.plan(video_features(8, 16, 8)).report
    assert report.attained_ratio == 1.0
    assert report.not_run == tuple(bound.label for bound in policy.kv_stages)


def test_the_kv_stage_stands_alone_too() -> None:
    text = "{format: 1, name: kv, stages: [{use: dycoke.kv, layer: 3}]}"
    assert read_policy(text, "kv.yaml").plan(video_features(2, 4, 4)).keep.all()


def test_the_package_can_be_looked_at_without_torch() -> None:
    code = (
        "import sys, vidsieve.policies as p; paths = []; p.register_policies(register=paths.append); "
        "assert len(paths) >= 7; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("shape", [VideoShape(8, 36, 4), VideoShape(16, 49, 28), VideoShape(7, 13, 32)])
def test_the_lowest_ratio_that_is_told_is_not_refused(name: str, shape: VideoShape) -> None:
    policy = load_policy(name)
    try:
        low, high = policy.attainable(shape)
    except PolicyError:
        return  # absolute layers that so few do not have
    if policy.retention_ratio is not None:
        check_attainable(policy.with_(retention_ratio=low), shape)
        check_attainable(policy.with_(retention_ratio=high), shape)


RENUMBERS = ("divprune", "cdpruner", "fastervlm", "visionzip", "holitom", "llava-scissor", "sttm", "vidcom2")


@pytest.mark.parametrize("name", RENUMBERS)
def test_a_policy_whose_code_renumbers_says_so_and_takes_that_as_a_setting(name: str) -> None:
    told = " ".join(default().policies[name].read_text(encoding="utf-8").replace("\n# ", " ").split())
    assert "`positions: compact`" in told
    policy = load_policy(name, settings={"positions": "compact"})
    assert (load_policy(name).positions, policy.positions) == ("original", "compact")
    assert read_policy(policy.to_yaml(), "again.yaml").hash == policy.hash != load_policy(name).hash
    assert policy.with_(settings={"positions": "original"}).hash == load_policy(name).hash
    assert policy.with_(retention_ratio=0.4).positions == "compact"


@pytest.mark.parametrize("value", ["compacted", None, 1])
def test_positions_that_do_not_exist_are_refused(value: object) -> None:
    with pytest.raises(UsageError, match="'positions': must be original, trained or compact"):
        load_policy("divprune", settings={"positions": value})
