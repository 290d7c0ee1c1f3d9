"""Files that are no policy: a clear sentence, never a traceback."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsieve.framework.errors import PolicyError, PolicyFileError
from vidsieve.framework.policy.file import load_policy, read_policy
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.registry import Registry

REGISTRY = Registry(installed=False)
HEAD = "format: 1\nname: x\nstages: []\n"


def faults(text: str) -> list[str]:
    with pytest.raises(PolicyFileError) as caught:
        read_policy(text, "my.yaml", REGISTRY)
    return caught.value.faults


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n...\n"])
def test_an_empty_file_is_called_empty_or_no_mapping(text: str) -> None:
    assert len(faults(text)) == 1
    assert "empty" in faults(text)[0] or "got nothing" in faults(text)[0]


@pytest.mark.parametrize("text", ["[1, 2]", "just text", "42", "null", "- format: 1"])
def test_a_root_that_is_no_mapping_is_refused(text: str) -> None:
    assert len(faults(text)) == 1
    assert "my.yaml:1: the policy must be a mapping of keys to values, got" in faults(text)[0]


def test_an_empty_mapping_lacks_everything() -> None:
    assert len(faults("{}")) == 3


@pytest.mark.parametrize(
    ("text", "line"),
    [("format: 1\nname: [a\n", 3), ("format: 1\n\tname: x\n", 2), ("a: b: c\n", 1), ("a: 'x\n", 2), ("}", 1)],
)
def test_a_syntax_error_has_a_line(text: str, line: int) -> None:
    assert len(faults(text)) == 1
    assert faults(text)[0].startswith(f"my.yaml:{line}: not valid YAML: ")


@pytest.mark.parametrize("character", ["\x00", "\x07", "\x1b", "\ud800"])
def test_control_characters_are_named_with_their_line(character: str) -> None:
    told = faults(f"format: 1\nname: x\nsummary: a{character}b\nstages: []\n")
    assert told == [f"my.yaml:3: not valid YAML: the character #x{ord(character):04x} is not allowed."]


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['exit 3']", "!!binary aGk=", "!mine x", "!!str 5", "!!set {a}"]
)
def test_tags_are_refused_and_never_run(tag: str) -> None:
    told = faults(HEAD + f"summary: {tag}\n")
    assert len(told) == 1
    assert told[0].startswith("my.yaml:4: the tag ")


def test_anchors_and_aliases_are_refused_each_at_its_line() -> None:
    told = faults("format: 1\nname: &name x\nsummary: *name\nstages: []\n")
    assert [fault.split(":")[1] for fault in told] == ["2", "3"]


def test_a_billion_laughs_are_refused_before_they_are_built() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    assert "anchors and aliases are not allowed" in faults("\n".join(lines))[0]


@pytest.mark.parametrize("bracket", ["[", "{a: "])
def test_deep_nesting_is_refused(bracket: str) -> None:
    assert faults("x: " + bracket * 3000) == ["my.yaml:1: nested deeper than 50 levels."]


def test_a_second_document_is_refused_at_its_line() -> None:
    assert faults(HEAD + "---\n" + HEAD) == ["my.yaml:4: a second document starts here; a policy file holds one."]


def test_a_huge_text_is_refused_at_once() -> None:
    assert "characters; a policy file has at most" in faults(HEAD + "#" * 2_000_000)[0]


@pytest.mark.parametrize("value", ["0x_", "0b_", "9" * 5000, "=", "!"])
def test_scalars_that_only_look_like_values_are_told(value: str) -> None:
    assert any(fault.startswith("my.yaml:4: ") for fault in faults(HEAD + f"provenance: {{a: {value}}}\n"))


@pytest.mark.parametrize("key", ["[a, b]", "{a: b}"])
def test_keys_that_are_no_words_are_told(key: str) -> None:
    assert any("my.yaml:4: a key must be a word, got" in fault for fault in faults(HEAD + f"? {key}\n: 1\n"))
    assert any("a key must be a word" in fault for fault in faults(HEAD + f"provenance: {{? {key} : 1}}\n"))


def test_a_merge_key_is_refused() -> None:
    assert "unknown key '<<'" in " ".join(faults(HEAD + "<<: {name: y}\n"))


def test_dates_are_text_and_need_no_calendar() -> None:
    policy = read_policy(HEAD + "summary: 2020-13-45\nprovenance: {when: 2020-01-01}\n", "my.yaml", REGISTRY)
    assert (policy.summary, policy.provenance) == ("2020-13-45", {"when": "2020-01-01"})


def test_a_byte_order_mark_and_windows_lines_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode())
    assert load_policy(path, registry=REGISTRY).name == "x"


@pytest.mark.parametrize("raw", [b"\xff\xfe\x00", "é: 1".encode("latin-1"), HEAD.encode("utf-16")])
def test_text_that_is_not_utf8_is_told_so(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(raw)
    with pytest.raises(PolicyError, match=r"x\.yaml.*not UTF-8 text|x\.yaml.*not allowed"):
        load_policy(path, registry=REGISTRY)


def test_a_huge_file_is_refused_without_reading_it_all(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    with path.open("wb") as file:
        file.truncate(20_000_000_000)  # sparse
    with pytest.raises(PolicyFileError, match="characters; a policy file has at most"):
        load_policy(path, registry=REGISTRY)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no such file"):
        load_policy(tmp_path, registry=REGISTRY)


BLOCKS = ["format: 1\n", "name: x\n", "stages:\n", "  - {use: a}\n", "%YAML 1.1\n", "---\n", "...\n"]
MARKS = ["  - ", "? ", ": ", "[", "]", "{", "}", "&a ", "*a ", "!!int ", "- ", "\n", "  ", "\t", "'", '"', "|", ">"]
PIECES = st.sampled_from([*BLOCKS, *MARKS, "0x", ".nan", "~", "<<", "é"])


@settings(deadline=None)
@given(st.one_of(st.lists(PIECES, max_size=25).map("".join), st.text(max_size=80)))
def test_any_text_is_a_policy_or_a_list_of_faults_with_lines(text: str) -> None:
    try:
        policy, faults = read_policy(text, "my.yaml", REGISTRY), []
    except PolicyFileError as error:
        policy, faults = None, error.faults
    assert isinstance(policy, Policy) or faults
    lines = sum(text.count(ending) for ending in ("\n", "\r", "\x85", "\u2028", "\u2029"))
    for fault in faults:
        assert 1 <= int(fault.split(":")[1]) <= lines + 2
