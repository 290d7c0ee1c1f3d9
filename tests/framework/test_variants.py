"""Stages left out or exchanged make another policy, with an honest name and nothing that speaks of what is gone."""

from pathlib import Path

import pytest
from framework.kit import Best, Even, Norm, Pairs, Window

from vidsieve.framework.composition import BoundStage
from vidsieve.framework.errors import PolicyError, PolicyFileError, UnknownNameError, UsageError
from vidsieve.framework.policy.file import load_policy, read_policy
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.registry import Registry
from vidsieve.framework.stage import tunable

REGISTRY = Registry(installed=False)


class Picky(Norm):
    """Cannot be built without being told."""

    weight: float = tunable(low=0.0, high=1.0)


for _name, _stage in {"my.even": Even, "my.norm": Norm, "pairs": Pairs, "best": Best, "window": Window,
                      "picky": Picky}.items():  # fmt: skip
    REGISTRY.register(_name, _stage)

TEXT = """format: 1
name: my
summary: A sample.
retention_ratio: 0.25
stages:
  - {use: my.even}
  - {use: my.norm}
  - {use: best}
"""


def _policy(search: str = "") -> Policy:
    return read_policy(TEXT + search, "my.yaml", REGISTRY)


def test_leaving_out_a_stage_changes_name_hash_and_summary_and_drops_provenance() -> None:
    before = _policy("provenance: {accuracy: 0.9}\n")
    after = before.with_(without=["my.even"])
    assert after.name == "my-without-even"
    assert [bound.label for bound in after.stages] == ["my.norm", "best"]
    assert after.hash != before.hash
    assert after.provenance == {}
    assert "Without my.even" in after.summary
    assert after.retention_ratio == 0.25


def test_another_stage_can_stand_in_and_be_set() -> None:
    other = BoundStage("picky", "picky", Picky(weight=0.5))
    after = _policy().with_(instead={"my.norm": other}, settings={"picky.weight": 0.75}, retention_ratio=0.5)
    assert after.name == "my-with-picky"
    assert after.stages[1].use == "picky"
    assert after.stages[1].stage.model_dump()["weight"] == 0.75
    assert after.retention_ratio == 0.5


def test_a_variant_that_makes_no_sense_is_a_policy_error() -> None:
    with pytest.raises(PolicyError, match="reads scores"):
        _policy().with_(without=["my.norm"])
    with pytest.raises(PolicyError, match="no stage removes"):
        _policy().with_(without=["my.even", "my.norm", "best"])


def test_unknown_labels_and_contradictions_are_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'my\.even'"):
        _policy().with_(without=["my.evn"])
    with pytest.raises(UsageError, match="to be left out and to be exchanged"):
        _policy().with_(without=["my.even"], instead={"my.even": BoundStage("pairs", "pairs", Pairs())})
    with pytest.raises(UnknownNameError, match=r"no stage named 'my\.even'"):
        _policy().with_(without=["my.even"], settings={"my.even.x": 1})


def test_a_fixed_last_stage_lets_go_of_the_ratio() -> None:
    fixed = BoundStage("window", "window", Window(drop_ratio=0.5))
    after = Policy(name="a", retention_ratio=0.5, stages=(fixed, BoundStage("n", "my.norm", Norm()),
                   BoundStage("best", "best", Best()))).with_(without=["n", "best"])  # fmt: skip
    assert after.retention_ratio is None
    assert after.closer is fixed


def test_the_search_section_keeps_only_what_is_still_there() -> None:
    search = """search:
  retention_ratio: {low: 0.1, high: 0.5}
  my.norm.sign: fixed
  window.drop_ratio: fixed
  stages: {my.even: optional, my.norm: [my.norm, pairs]}
"""
    policy = _policy(search)
    assert policy.with_(without=["my.even"]).search == {
        "retention_ratio": {"low": 0.1, "high": 0.5},
        "my.norm.sign": "fixed",
        "stages": {"my.norm": ["my.norm", "pairs"]},
    }
    one = Policy(name="my", retention_ratio=0.5, stages=policy.stages[1:], search={"stages": {"my.norm": "fixed"}})
    exchanged = one.with_(instead={"my.norm": BoundStage("p", "picky", Picky(weight=1.0))})
    assert exchanged.search == {}


def test_what_was_made_loads_back_as_the_same_policy(tmp_path: Path) -> None:
    policy = _policy("search:\n  my.norm.sign: fixed\n  stages: {my.even: optional}\n").with_(without=["my.even"])
    path = tmp_path / "variant.yaml"
    path.write_text(policy.to_yaml())
    assert load_policy(path, registry=REGISTRY).hash == policy.hash


def test_a_file_names_alternatives_which_are_found_built_and_no_part_of_the_hash() -> None:
    policy = _policy("search:\n  stages: {my.even: [my.even, pairs, window]}\n")
    assert [(bound.label, bound.use) for bound in policy.alternatives["my.even"]] == [
        ("pairs", "pairs"), ("window", "window")
    ]  # fmt: skip
    assert isinstance(policy.alternatives["my.even"][0].stage, Pairs)
    assert "alternatives" not in policy.to_dict()


@pytest.mark.parametrize(
    ("stages", "line", "told"),
    [
        ("{my.evn: fixed}", 10, "no stage labelled 'my.evn'. Did you mean 'my.even'?"),
        ("{my.even: [my.even, pars]}", 10, "no stage named 'pars'. Did you mean 'pairs'?"),
        ("{my.even: []}", 10, "must be fixed, optional or a list of stage names, got an empty list"),
        ("{my.even: off}", 10, "got 'off', which YAML reads as False; put it in quotes"),
        ("{my.even: maybe}", 10, "got the text 'maybe'"),
        ("{my.even: {low: 1}}", 10, "got a mapping"),
        ("{my.even: [[pairs]]}", 10, "must list names of stages, got a list"),
        ("{my.even: [3]}", 10, "must list names of stages, got the number '3'"),
        ("{my.even: [pairs, pairs]}", 10, "'pairs' stands twice"),
        ("{my.even: [picky]}", 10, "'picky' cannot stand in, as it has settings without a default: weight"),
        ("{my.even: fixed, my.even: optional}", 10, "twice"),
        ("[my.even]", 10, "search.stages must be a mapping"),
        ("\n    my.even: fixed\n    my.norm: [nrom]", 12, "no stage named 'nrom'"),
    ],
)
def test_a_faulty_choice_of_stages_is_told_with_its_line(stages: str, line: int, told: str) -> None:
    with pytest.raises(PolicyFileError) as caught:
        _policy(f"search:\n  stages: {stages}\n")
    assert any(fault.startswith(f"my.yaml:{line}: ") and told in fault for fault in caught.value.faults), (
        caught.value.faults
    )


def test_with_unreadable_stages_labels_are_not_blamed() -> None:
    with pytest.raises(PolicyFileError) as caught:
        read_policy(
            TEXT.replace("{use: my.even}", "{use: my.evn}") + "search: {stages: {my.even: fixed}}\n",
            "my.yaml",
            REGISTRY,
        )
    assert len(caught.value.faults) == 1
