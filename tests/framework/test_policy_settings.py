"""Variants of a policy, its document and its hash."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from framework.kit import Best, Norm, Window, bind, policy, ramp

from vidsieve.framework.errors import PolicyError, RetentionError, UnknownNameError, UsageError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Scores
from vidsieve.framework.policy.file import load_policy, read_policy
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.registry import Registry
from vidsieve.framework.stage import Stage, tunable


def top(ratio: float | None = 0.25) -> Policy:
    return policy(("my.norm", Norm()), ("best.of-all", Best()), ratio=ratio)


def window(ratio: float | None = None, drop: float | None = None) -> Policy:
    return policy(("window", Window(drop_ratio=drop)), ratio=ratio)


def setting(made: Policy, index: int, name: str) -> object:
    return getattr(made.stages[index].stage, name)


def test_keys_are_split_at_the_last_dot() -> None:
    changed = top().with_(settings={"my.norm.sign": -1.0})
    assert setting(changed, 0, "sign") == -1.0


def test_the_original_is_left_alone() -> None:
    first = top()
    first.with_(retention_ratio=0.5, settings={"my.norm.sign": -1.0})
    assert first.retention_ratio == 0.25
    assert setting(first, 0, "sign") == 1.0


def test_an_untouched_stage_is_the_same_stage() -> None:
    first = top()
    assert first.with_(settings={"my.norm.sign": -1.0}).stages[1] is first.stages[1]


def test_an_unknown_setting_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'sign'"):
        top().with_(settings={"my.norm.sgin": 1.0})


@pytest.mark.parametrize("key", ["my.nrom.sign", "norm.sign", "sign", "", ".", "my.norm.sign.x"])
def test_an_unknown_stage_is_refused_and_names_the_rest(key: str) -> None:
    with pytest.raises(UnknownNameError, match=r"best\.of-all, my\.norm"):
        top().with_(settings={key: 1.0})


def test_a_label_addresses_one_of_two_uses() -> None:
    twice = policy(("a", Norm()), ("b", Best(keep_ratio=0.5)), ("c", Norm()), ("d", Best()), ratio=0.2)
    changed = twice.with_(settings={"c.sign": -2.0})
    assert (setting(changed, 0, "sign"), setting(changed, 2, "sign")) == (1.0, -2.0)


@pytest.mark.parametrize("value", [3.0, "1.0", None, True, float("nan")])
def test_a_value_that_does_not_fit_is_a_usage_error(value: object) -> None:
    with pytest.raises(UsageError, match=r"stage 'my.norm': sign: "):
        top().with_(settings={"my.norm.sign": value})


@pytest.mark.parametrize("ratio", [0.0, 25, -0.1, float("nan"), float("inf")])
def test_a_ratio_outside_zero_to_one_is_a_usage_error(ratio: float) -> None:
    with pytest.raises(UsageError, match=r"must be in \(0, 1\]"):
        top().with_(retention_ratio=ratio)


def test_fixing_the_closers_count_frees_the_ratio() -> None:
    fixed = window(ratio=0.5).with_(settings={"window.drop_ratio": 1.0})
    assert fixed.retention_ratio is None
    assert fixed.plan(ramp(4, 10)).report.kept_tokens == 10


def test_fixing_anything_else_keeps_the_ratio() -> None:
    assert top().with_(settings={"my.norm.sign": 0.5}).retention_ratio == 0.25


def test_fixing_both_in_agreement_runs_with_the_stages_own_count() -> None:
    both = window(ratio=0.5).with_(retention_ratio=0.625, settings={"window.drop_ratio": 0.5})
    assert both.plan(ramp(4, 10)).report.kept_tokens == 25


def test_fixing_both_in_contradiction_gives_what_is_attainable() -> None:
    both = window(ratio=0.5).with_(retention_ratio=0.25, settings={"window.drop_ratio": 0.5})
    with pytest.raises(RetentionError, match=r"ratio 0\.25 asked.*reaches 0\.625 only; window\.drop_ratio is fixed"):
        both.plan(ramp(4, 10))


def test_a_ratio_given_to_a_file_with_a_fixed_count_contradicts_it() -> None:
    with pytest.raises(RetentionError, match=r"0\.625 only"):
        window(drop=0.5).with_(retention_ratio=0.9).plan(ramp(4, 10))


def test_letting_go_of_a_fixed_count_has_it_solved() -> None:
    free = window(drop=0.5).with_(retention_ratio=0.4, settings={"window.drop_ratio": None})
    assert free.plan(ramp(4, 10)).report.kept_tokens == 16


def test_a_variant_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(PolicyError, match="nothing says how many tokens stay"):
        window(drop=0.5).with_(settings={"window.drop_ratio": None})


def test_what_was_measured_stays_only_with_what_was_measured() -> None:
    measured = replace(top(), provenance={"accuracy": 0.9})
    assert measured.with_(retention_ratio=0.25).provenance == {"accuracy": 0.9}
    assert measured.with_(retention_ratio=0.5).provenance == {}
    assert measured.with_(settings={"my.norm.sign": -1.0}).provenance == {}


def test_the_hash_knows_every_setting_and_nothing_else() -> None:
    assert top().hash == top().hash
    assert top().hash == replace(top(), provenance={"seed": 1}).hash
    others = [
        top(0.3),
        top().with_(settings={"my.norm.sign": 0.5}),
        replace(top(), positions="compact"),
        replace(top(), exact=False),
        replace(top(), name="other"),
        replace(top(), stages=bind(("other", Norm()), ("best.of-all", Best()))),
    ]
    assert len({top().hash, *(other.hash for other in others)}) == 1 + len(others)


class Many(Stage):
    """Settings that YAML writes in its own way."""

    layers_at: tuple[int, ...] = (2, 4)
    tiny: float = tunable(1e-5, low=1e-6, high=1.0, log=True)
    word: str = "no"
    cap: int | None = 5

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        return Scores(tokens.features[..., 0])


def registry() -> Registry:
    made = Registry(installed=False)
    for name, stage in {"norm": Norm, "best": Best, "window": Window, "many": Many}.items():
        made.register(name, stage)
    return made


TEXT = """
format: 1
name: round-trip
summary: "yes: a colon, and é"
sources: ["arXiv:1", '2020-01-01']
retention_ratio: 0.25
exact: false
positions: compact
stages:
  - {use: norm, as: first.norm, sign: 1}
  - {use: best, keep_ratio: 0.5}
  - {use: norm}
  - {use: best, as: last}
search: {trials: 4}
provenance: {seed: 3, when: 2020-01-01, nested: {a: [1, 2.5, null]}}
"""


def test_a_written_policy_reads_back_as_itself() -> None:
    first = read_policy(TEXT, "first.yaml", registry())
    second = read_policy(first.to_yaml(), "second.yaml", registry())
    assert second.to_dict() == first.to_dict()
    assert second.hash == first.hash
    assert second.provenance == {"seed": 3, "when": "2020-01-01", "nested": {"a": [1, 2.5, None]}}


def test_formatting_and_provenance_do_not_move_the_hash() -> None:
    first = read_policy(TEXT, "a.yaml", registry())
    other = TEXT.replace("provenance:", "# a comment\nprovenance:").replace("seed: 3", "seed: 4")
    other = other.replace("{use: norm, as: first.norm, sign: 1}", "as: 'first.norm'\n    sign: 1.0\n    use: norm")
    other = other.replace("retention_ratio: 0.25", "retention_ratio: .25")
    assert read_policy(other, "b.yaml", registry()).hash == first.hash


def test_a_setting_left_out_is_its_default_written_out() -> None:
    short = read_policy(TEXT.replace(", sign: 1", ""), "a.yaml", registry())
    assert short.hash == read_policy(TEXT, "b.yaml", registry()).hash


@pytest.mark.parametrize("values", [{}, {"layers_at": (7,)}, {"cap": None}, {"word": "1e-3"}, {"tiny": 3e-6}])
def test_awkward_settings_survive_the_file(values: dict[str, object]) -> None:
    stage = Many.build(values)
    first = Policy(name="awkward", retention_ratio=0.5, stages=bind(("many", stage), ("best", Best())))
    second = read_policy(first.to_yaml(), "second.yaml", registry())
    assert second.stages[0].stage.model_dump() == stage.model_dump()
    assert second.hash == first.hash


def test_load_policy_takes_a_path_a_ratio_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT)
    made = load_policy(path, retention_ratio=0.125, settings={"first.norm.sign": -1.0}, registry=registry())
    assert made.retention_ratio == 0.125
    assert setting(made, 0, "sign") == -1.0
    assert made.plan(torch.rand(4, 4, 3)).report.kept_tokens == 2


def test_load_policy_prefers_a_published_name_and_offers_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT)
    known = registry()
    known.register("round-trip", path)
    assert load_policy("round-trip", registry=known).name == "round-trip"
    with pytest.raises(UnknownNameError, match="Did you mean 'round-trip'"):
        load_policy("round-trop", registry=known)


@pytest.mark.parametrize("name", ["absent.yaml", "some/folder", Path("absent")])
def test_a_path_that_is_not_there_is_told_as_one(name: str | Path) -> None:
    with pytest.raises(PolicyError, match="no such file"):
        load_policy(name, registry=registry())
