"""Published policies on families: each policy on one at least, each family with three, all through one contract.

Pairs are made from the registry, so that new policies and families join by themselves. `scripts/contract_matrix.py`
puts every pair through the same contract.
"""

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from adapters.kits import decoders_of, kits

from vidsieve import load_policy
from vidsieve.framework import registry
from vidsieve.framework.errors import PolicyError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep
from vidsieve.framework.records import VideoShape, VideoTokens
from vidsieve.framework.stage import Stage
from vidsieve.testing.adapter_kit import KeepRandom, language_inputs, policy_of, run
from vidsieve.testing.adapter_policies import (
    BATCH,
    check_policy,
    check_ratio,
    check_text,
    missing,
    needs_depth,
    pairs,
    within_reach,
)

POLICIES = {name: load_policy(name) for name in registry.default().policies}
ADAPTERS = registry.default().models
PAIRS = pairs(POLICIES, ADAPTERS)
if ("video-llava", "pixel-change") not in PAIRS:
    PAIRS.append(("video-llava", "pixel-change"))  # frames that are not encoded take rows that are no tokens with them


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_a_published_policy_keeps_the_contract_on_a_family(family: str, name: str) -> None:
    policy = POLICIES[name]
    with decoders_of() if needs_depth(policy) else nullcontext():
        kit = kits()[family]()
        model = kit.build_model()
    report = check_policy(kit, model, policy)
    assert report.policy_name == name
    if policy.exact:  # the others may find nothing to remove in random pixels, and warn
        assert (report.attained_ratio < 1) is (policy.counter is not None)
    if policy.evict_stages:
        assert report.kv_ratio is not None and report.kv_ratio < 1
    assert report.not_run == ()


def test_every_policy_and_every_family_takes_part() -> None:
    assert {name for _, name in PAIRS} == set(POLICIES)
    assert min(Counter(family for family, _ in PAIRS)[family] for family in ADAPTERS) >= 3
    assert set(kits()) == set(ADAPTERS)
    assert len(set(PAIRS)) == len(PAIRS)


def test_new_policies_and_families_join_by_themselves() -> None:
    policies = {f"new-{number:02d}": POLICIES["vidcom2"] for number in range(60)}
    made = pairs(policies, ADAPTERS)
    assert {name for _, name in made} == set(policies)
    inside = pairs({"fastv": POLICIES["fastv"]}, ADAPTERS)
    assert {family for family, _ in inside} == {f for f, one in ADAPTERS.items() if "prune_layer" in one.runs}


def test_a_pair_that_does_not_fit_is_told_apart_and_refused() -> None:
    assert missing(ADAPTERS["gemma4"], POLICIES["fastv"]) == ["prune_layer"]
    assert missing(ADAPTERS["qwen2-vl"], POLICIES["fastv"]) == []
    kit = kits()["gemma4"]()
    with pytest.raises(PolicyError, match="prune_layer"):
        check_policy(kit, kit.build_model(), POLICIES["fastv"])


def test_a_ratio_out_of_reach_of_a_tiny_model_is_moved_into_it() -> None:
    shape = VideoShape(8, 6, 4)
    assert within_reach(POLICIES["vidcom2"], shape) is POLICIES["vidcom2"]
    low, high = POLICIES["fastv"].attainable(shape)
    assert POLICIES["fastv"].retention_ratio < low < within_reach(POLICIES["fastv"], shape).retention_ratio < high


class Drifts(Stage):
    """Keep the first half of the tokens in every other call, the last half in between."""

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        CALLS.append(1)
        mask = torch.arange(tokens.keep.numel()) < tokens.keep.numel() // 2
        return Keep((mask if len(CALLS) % 2 else ~mask).view_as(tokens.keep))


class Leaks(KeepRandom):
    """Leave a mark on a module."""

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        MODELS[-1].lm_head.mark = 1
        return Keep(torch.arange(tokens.keep.shape[1]).expand(tokens.keep.shape) % 2 == 0)


CALLS: list[int] = []
MODELS: list[Any] = []
EVERY_SECOND = policy_of(KeepRandom(), ratio=0.5)


@pytest.fixture
def qwen() -> tuple[Any, Any]:
    """A kit with its model."""
    kit = kits()["qwen2-vl"]()
    MODELS.append(kit.build_model())
    return kit, MODELS[-1]


def test_a_row_that_comes_out_otherwise_in_a_batch_is_seen(qwen: tuple[Any, Any]) -> None:
    with pytest.raises(AssertionError, match="batch: row 0"):
        check_policy(*qwen, policy_of(Drifts(), ratio=0.5))


def test_what_stays_on_the_model_is_seen(qwen: tuple[Any, Any]) -> None:
    with pytest.raises(AssertionError, match="left behind"):
        check_policy(*qwen, policy_of(Leaks(), ratio=0.5))


def test_text_that_changes_is_seen(qwen: tuple[Any, Any]) -> None:
    kit, model = qwen

    def spoil(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        embeds = kwargs["inputs_embeds"]
        if embeds.shape[1] == whole - 24:  # half of the 48 visual tokens left
            kwargs["inputs_embeds"] = embeds.index_fill(1, torch.tensor([0]), 0.0)
        return args, kwargs

    whole = kit.make_inputs(model, BATCH[0])["input_ids"].shape[1]
    model.get_decoder().register_forward_pre_hook(spoil, with_kwargs=True)
    with pytest.raises(AssertionError, match="text: rows that are no visual tokens changed"):
        check_policy(kit, model, EVERY_SECOND)


def test_a_layer_that_loses_text_and_a_wrong_ratio_are_seen(qwen: tuple[Any, Any]) -> None:
    kit, model = qwen
    inputs = kit.make_inputs(model, BATCH[0])
    output, report = run(model, POLICIES["fastv"].with_(retention_ratio=0.5), inputs)
    whole = language_inputs(model, inputs)["inputs_embeds"][0]
    check_text(model, inputs, report, whole, output.past_key_values)
    (entered,) = report.layer_tokens
    told = replace(report, layer_tokens=((*entered[:2], entered[2] + 1, *entered[3:]),))
    with pytest.raises(AssertionError, match="text: layer 2 holds"):
        check_text(model, inputs, told, whole, output.past_key_values)
    _, halved = run(model, EVERY_SECOND, inputs)
    with pytest.raises(AssertionError, match="retention: kept 24 tokens, asked 12"):
        check_ratio(EVERY_SECOND.with_(retention_ratio=0.25), halved, VideoShape(8, 6, 4))
