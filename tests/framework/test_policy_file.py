"""A policy file with faults: each is told with its line, all at once."""

import re

import pytest
from framework.kit import Best, Even, Norm, Window, answering

from vidsieve.framework.errors import PolicyFileError
from vidsieve.framework.plans import KeepKV
from vidsieve.framework.policy.file import read_policy
from vidsieve.framework.registry import Registry


def registry() -> Registry:
    made = Registry(installed=False)
    kv = type(answering(prune_kv=KeepKV, layers=(1,)))
    for name, stage in {"norm": Norm, "even": Even, "top-k": Best, "window": Window, "kv": kv}.items():
        made.register(name, stage)
    return made


def faults(text: str) -> list[str]:
    """Each fault as 'line: sentence'."""
    with pytest.raises(PolicyFileError) as caught:
        read_policy(text, "my.yaml", registry())
    assert str(caught.value) == "\n".join(caught.value.faults)
    assert all(fault.startswith("my.yaml:") for fault in caught.value.faults)
    return [fault.removeprefix("my.yaml:") for fault in caught.value.faults]


def body(stages: str = "", **keys: str) -> str:
    """A sound file with some keys replaced; `stages` is put under the key, from line 4 on."""
    lines = {"format": "1", "name": "x", "retention_ratio": "0.5"} | keys
    head = "".join(f"{key}: {value}\n" for key, value in lines.items() if value != "-")
    return head + "stages:\n" + (stages or "  - {use: norm}\n  - {use: top-k}\n")


def the_one(text: str, line: int, pattern: str) -> None:
    told = faults(text)
    assert len(told) == 1, told
    assert told[0].startswith(f"{line}: "), told
    assert re.search(pattern, told[0]), told


def test_a_sound_file_is_read() -> None:
    policy = read_policy(body(), "my.yaml", registry())
    assert [bound.label for bound in policy.stages] == ["norm", "top-k"]
    assert (policy.retention_ratio, policy.positions, policy.exact) == (0.5, "original", True)


@pytest.mark.parametrize(
    ("keys", "line", "pattern"),
    [
        ({"format": "2"}, 1, "format must be 1, got the number '2'"),
        ({"format": "'1'"}, 1, "format must be 1, got the text '1'"),
        ({"format": "1.0"}, 1, "format must be 1"),
        ({"format": "true"}, 1, "format must be 1"),
        ({"name": "no"}, 2, "name must be text, got 'no', which YAML reads as False; put it in quotes"),
        ({"name": "2024"}, 2, "name must be text, got the number '2024'"),
        ({"name": "a b"}, 2, "words joined by"),
        ({"name": "../etc"}, 2, "words joined by"),
        ({"name": "''"}, 2, "words joined by"),
        ({"name": ""}, 2, "got nothing"),
        ({"retention_ratio": "3e-4"}, 3, r"'3e-4', which is text to YAML; write 3\.0e-4"),
        ({"retention_ratio": "'0.5'"}, 3, "must be a number .*got the text '0.5'"),
        ({"retention_ratio": "25"}, 3, r"must be in \(0, 1\], got the number '25'. Ratios are fractions kept"),
        ({"retention_ratio": "0"}, 3, r"must be in \(0, 1\]"),
        ({"retention_ratio": "-0.5"}, 3, r"must be in \(0, 1\]"),
        ({"retention_ratio": ".nan"}, 3, r"must be in \(0, 1\], got the number '.nan'"),
        ({"retention_ratio": ".inf"}, 3, r"must be in \(0, 1\]"),
        ({"retention_ratio": "1.0e+400"}, 3, r"must be in \(0, 1\]"),
        ({"retention_ratio": "yes"}, 3, "must be a number .*got 'yes', which YAML reads as True"),
        ({"retention_ratio": "[0.5]"}, 3, "got a list"),
        ({"positions": "compacted"}, 4, "original, trained or compact, got the text 'compacted'"),
        ({"exact": "'false'"}, 4, "exact must be true or false, got the text 'false'"),
        ({"exact": "0"}, 4, "exact must be true or false, got the number '0'"),
        ({"summary": "[a]"}, 4, "summary must be text, got a list"),
        ({"sources": "arXiv"}, 4, "sources must be a list of texts, got the text 'arXiv'"),
        ({"sources": "[1]"}, 4, "sources must be text, got the number '1'"),
        ({"requires": "{a: b}"}, 4, "requires must be a list of texts, got a mapping"),
        ({"search": "[1]"}, 4, "search must be a mapping of keys to values, got a list"),
        ({"provenance": "done"}, 4, "provenance must be a mapping of keys to values, got the text 'done'"),
        ({"provenance": "{a: 1, a: 2}"}, 4, "has the key 'a' twice"),
        ({"provenance": "{a: {b: [{c: 1, c: 2}]}}"}, 4, r"provenance\.a\.b has the key 'c' twice"),
        ({"stage": "[]"}, 4, "unknown key 'stage'. Did you mean 'stages'"),
        ({"device": "cuda"}, 4, "unknown key 'device'"),
    ],
)
def test_a_key_of_the_wrong_kind_is_told_with_its_line(keys: dict[str, str], line: int, pattern: str) -> None:
    the_one(body(**keys), line, pattern)


@pytest.mark.parametrize("key", ["format", "name"])
def test_a_missing_key_is_told(key: str) -> None:
    the_one(body(**{key: "-"}), 1, f"the key '{key}' is missing")


def test_missing_stages_are_told() -> None:
    the_one("format: 1\nname: x\n", 1, "the key 'stages' is missing")


def test_a_repeated_key_names_both_lines() -> None:
    the_one(body() + "name: y\n", 7, r"the policy has the key 'name' twice \(first in line 2\); remove one")


NORM = "  - {use: norm}\n"


@pytest.mark.parametrize(
    ("stages", "line", "pattern"),
    [
        (" []\n", 5, "no stage removes visual tokens"),
        ("  use: norm\n", 5, "stages must be a list, got a mapping"),
        (" top-k\n", 5, "stages must be a list, got the text 'top-k'"),
        (NORM + "  - top-k\n", 6, r"stages\[1\] must be a mapping of keys to values, got the text 'top-k'"),
        (NORM + "  - {}\n", 6, r"stages\[1\]: the key 'use' is missing"),
        (NORM + "  -\n", 6, r"stages\[1\] must be a mapping of keys to values, got nothing"),
        (NORM + "  - {keep_ratio: 0.5}\n", 6, r"stages\[1\]: the key 'use' is missing"),
        (NORM + "  - {use: topk}\n", 6, r"stages\[1\].use: no stage named 'topk'. Did you mean 'top-k'"),
        (NORM + "  - {use: [top-k]}\n", 6, r"stages\[1\].use must be text, got a list"),
        (NORM + "  - {use: top-k, as: no}\n", 6, r"stages\[1\].as must be text, got 'no', which YAML reads as False"),
        (NORM + "  - {use: top-k, as: a b}\n", 6, r"stages\[1\].as must be words"),
        (NORM + "  - {use: top-k, use: norm}\n", 6, r"stages\[1\] has the key 'use' twice"),
        (NORM + "  - use: top-k\n    kep_ratio: 0.5\n", 7, "no setting named 'kep_ratio'. Did you mean 'keep_ratio'"),
        (NORM + "  - use: top-k\n    keep_ratio: 5.0\n", 7, "keep_ratio: .*less than or equal to 1, got 5.0"),
        (NORM + "  - use: top-k\n    keep_ratio: .nan\n", 7, r"keep_ratio: .*finite|less than"),
        (NORM + "  - use: top-k\n    keep_ratio: 5e-1\n", 7, r"valid number, got '5e-1'.*write 5\.0e-1"),
        (NORM + "  - use: top-k\n    keep_ratio: off\n", 7, "valid number, got False.*'off', which YAML reads"),
        (NORM + "  - use: top-k\n    keep_ratio: {a: 1}\n", 7, "valid number"),
        (NORM + "  - use: top-k\n    keep_ratio: {a: 1, a: 2}\n", 7, "has the key 'a' twice"),
    ],
)
def test_a_bad_stage_is_told_with_its_line(stages: str, line: int, pattern: str) -> None:
    told = faults(body(stages))
    assert re.search(pattern, told[0]), told
    assert told[0].startswith(f"{line}: "), told


@pytest.mark.parametrize(
    ("stages", "line", "pattern"),
    [
        ("  - {use: even}\n  - {use: window}\n", 5, "stage 'even' makes budget that no later stage reads"),
        ("  - {use: norm}\n  - {use: norm, as: b}\n  - {use: top-k}\n", 5, "'norm' makes scores that no later stage"),
        ("  - {use: window}\n  - {use: top-k}\n", 6, "reads scores, but no earlier stage makes it"),
        ("  - {use: norm}\n  - {use: norm}\n  - {use: top-k}\n", 6, "stands twice"),
        ("  - {use: window}\n  - {use: norm}\n  - {use: top-k}\n", 5, "its drop_ratio must be given"),
        ("  - {use: kv}\n", 5, "no stage removes visual tokens before decode"),
    ],
)
def test_stages_that_do_not_fit_are_told_at_the_line_of_the_stage(stages: str, line: int, pattern: str) -> None:
    told = [fault for fault in faults(body(stages)) if re.search(pattern, fault)]
    assert [fault.split(":")[0] for fault in told] == [str(line)]


def test_all_faults_come_at_once_in_order_of_lines() -> None:
    told = faults(
        """format: 1
name: no
retention_ratio: 3e-4
exakt: true
stages:
  - {use: even}
  - {use: norm, sign: 1e0}
  - {use: topk}
  - use: top-k
    keep_ratio: 2.0
    keep_ratio: 0.5
positions: somewhere
"""
    )
    assert [int(fault.split(":")[0]) for fault in told] == [2, 3, 4, 7, 8, 10, 11, 12]


def test_faults_of_composition_stand_beside_faults_of_keys() -> None:
    told = faults(body("  - {use: even}\n  - {use: window}\n", positions="here"))
    assert [fault.split(":")[0] for fault in told] == ["4", "6"]


def test_a_ratio_that_could_not_be_read_is_not_called_missing_too() -> None:
    the_one(body(retention_ratio="half"), 3, "must be a number")


def test_an_unknown_stage_names_the_package_that_has_it() -> None:
    the_one(body("  - {use: their.stage}\n", requires="[their-package]"), 6, "needs: their-package; install it first")


def test_an_unknown_stage_names_the_plugins_that_are_broken() -> None:
    known = registry()
    known.failures["their_package"] = "ImportError: no module named absent"
    with pytest.raises(PolicyFileError, match="Plugin their_package could not be imported: ImportError: no module"):
        read_policy(body("  - {use: their.stage}\n"), "my.yaml", known)


def test_a_stage_whose_own_check_raises_is_a_fault_with_a_line() -> None:
    class Fussy(Norm):
        def model_post_init(self, _: object) -> None:
            raise RuntimeError("never satisfied")

    known = registry()
    known.register("fussy", Fussy)
    with pytest.raises(PolicyFileError, match=r"my\.yaml:5: .*RuntimeError: never satisfied"):
        read_policy(body("  - {use: fussy}\n  - {use: top-k}\n"), "my.yaml", known)
