"""`--policies`: names, files, folders and comma lists become policies, each once."""

from dataclasses import replace
from pathlib import Path

import pytest

from vidsieve.framework.errors import PolicyFileError, UnknownNameError, UsageError, VidsieveError
from vidsieve.framework.policy.file import load_policy
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.registry import default
from vidsieve.tuner.space.policy_catalog import asks_for_compositions, expand_policies, split_published


def _names(*words: str | Path) -> list[str]:
    return [policy.name for policy in expand_policies(words, default())]


def _write(path: Path, name: str, ratio: float = 0.25) -> Path:
    text = load_policy("vidcom2").with_(retention_ratio=ratio).to_yaml()
    path.write_text(text.replace("name: vidcom2", f"name: {name}"))
    return path


def test_names_files_folders_and_comma_lists_in_their_order(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    _write(folder / "b.yaml", "bee")
    _write(folder / "a.yml", "ape")
    (folder / "notes.txt").write_text("not a policy")
    lone = _write(tmp_path / "lone.yaml", "lone")
    assert _names("dycoke, vidcom2", str(lone), folder) == ["dycoke", "vidcom2", "lone", "ape", "bee"]
    assert _names(f"{folder},random") == ["ape", "bee", "random"]
    assert _names(lone) == ["lone"]


def test_a_file_whose_name_has_a_comma_is_that_file(tmp_path: Path) -> None:
    assert _names(str(_write(tmp_path / "a,b.yaml", "comma"))) == ["comma"]


def test_a_published_name_is_the_published_policy_even_beside_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vidcom2").mkdir()
    assert _names("vidcom2") == ["vidcom2"]


def test_the_same_policy_twice_is_once_and_two_of_one_name_are_refused(tmp_path: Path) -> None:
    same = _write(tmp_path / "same.yaml", "vidcom2")
    assert _names("vidcom2", str(same), "vidcom2,vidcom2") == ["vidcom2"]
    other = _write(tmp_path / "other.yaml", "vidcom2", 0.5)
    with pytest.raises(UsageError, match=r"vidcom2 and .*other\.yaml are two different policies named 'vidcom2'"):
        _names("vidcom2", str(other))


@pytest.mark.parametrize(
    ("word", "error", "told"),
    [
        ("vidcom", UnknownNameError, "Did you mean 'vidcom2'"),
        ("dycoke,vidcon2", UnknownNameError, "Did you mean 'vidcom2'"),
        ("", UsageError, "empty name"),
        ("dycoke,,vidcom2", UsageError, "empty name"),
        ("dycoke,", UsageError, "empty name"),
        (" ", UsageError, "empty name"),
        ("x" * 5000, UnknownNameError, "no policy named"),
        (",".join(["vidcom2"] * 1000) + ",x", UnknownNameError, "no policy named 'x'"),
        ("nowhere/x.yaml", VidsieveError, "no such file"),
    ],
)
def test_what_cannot_be_found_is_refused(word: str, error: type[VidsieveError], told: str) -> None:
    with pytest.raises(error, match=told):
        _names(word)


def test_an_empty_folder_and_a_broken_file_in_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no policy file"):
        _names(tmp_path)
    (tmp_path / "broken.yaml").write_text("format: 1\nnmae: x\n")
    with pytest.raises(PolicyFileError, match=r"broken\.yaml:2: unknown key 'nmae'"):
        _names(str(tmp_path))


def _with_search(name: str, **search: object) -> Policy:
    return replace(load_policy("vidcom2"), name=name, search=search)


def test_a_published_policy_can_stay_out_of_searches_that_name_none() -> None:
    asked_for = _with_search("asked", default=False)
    found = split_published([load_policy("vidcom2"), asked_for, _with_search("told", default=True)])
    assert [policy.name for policy in found.searched] == ["vidcom2", "told"]
    assert found.more == [asked_for]


@pytest.mark.parametrize("wrong", ["no", 0, None, []])
def test_default_must_be_true_or_false(wrong: object) -> None:
    with pytest.raises(UsageError, match=r"'odd', search: default: expected true or false"):
        split_published([_with_search("odd", default=wrong)])


def test_all_is_every_published_policy_but_controls_and_released_forms() -> None:
    published = split_published(load_policy(name) for name in default().policies)
    assert set(_names("all")) == {policy.name for policy in (*published.searched, *published.more)}
    assert {"random", "none", "dycoke-released"}.isdisjoint(_names("all"))
    assert _names("all,random")[-1] == "random"
    assert _names("vidcom2", "all").count("vidcom2") == 1


def test_a_folder_called_all_is_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all").mkdir()
    _write(tmp_path / "all" / "a.yaml", "ape")
    assert _names("all") == ["ape"]


@pytest.mark.parametrize(
    ("words", "asked", "named"),
    [
        (["composed"], True, []),
        (["vidcom2, composed"], True, ["vidcom2"]),
        (["vidcom2", "composed", "dycoke"], True, ["vidcom2", "dycoke"]),
        (["vidcom2"], False, ["vidcom2"]),
        ([], False, []),
    ],
)
def test_composed_asks_for_compositions_and_names_no_policy(words: list[str], asked: bool, named: list[str]) -> None:
    assert asks_for_compositions(words, default()) is asked
    assert _names(*words) == named


def test_a_folder_called_composed_is_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "composed").mkdir()
    _write(tmp_path / "composed" / "a.yaml", "ape")
    assert _names("composed") == ["ape"]
    assert not asks_for_compositions(["composed"], default())


def test_an_unknown_name_is_offered_the_words_that_are_no_policy_too() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'composed'\? Known: all, .*composed, .*vidcom2"):
        _names("compose")
