"""What `--model` and `--checkpoint` stand for."""

import json
import shutil
from pathlib import Path

import pytest
from checkpoint_fixtures import Invoke

from vidsieve.framework.errors import ModelError, UsageError
from vidsieve.framework.registry import default
from vidsieve.harness.model_choice import cached_snapshot, choose, fetched


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty checkpoint cache."""
    import huggingface_hub.constants
    import huggingface_hub.file_download

    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def put_into_cache(cache: Path, hub_id: str, source: Path, *, leave_out: str = "") -> Path:
    """Lay `source` out as the hub's cache does."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("a" * 40)
    shutil.copytree(source, snapshot)
    if leave_out:
        (snapshot / leave_out).unlink()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    return snapshot


def test_a_family_is_the_bundled_model_with_one_line_that_says_so(bundled: None) -> None:
    choice = choose("qwen2-vl", None, default())
    assert (choice.kind, choice.name) == ("bundled", "qwen2-vl-mini")
    assert "a small model trained on synthetic clips" in choice.note
    assert "`checkpoint` Qwen/Qwen2-VL-2B-Instruct" in choice.note
    assert "\n" not in choice.note


def test_a_family_is_its_default_checkpoint_when_that_is_in_the_cache(cache: Path, qwen: Path, bundled: None) -> None:
    snapshot = put_into_cache(cache, "Qwen/Qwen2-VL-2B-Instruct", qwen)
    choice = choose("qwen2-vl", None, default())
    assert (choice.kind, choice.name, choice.folder) == ("cached", "Qwen/Qwen2-VL-2B-Instruct", snapshot)
    assert choice.revision == "a" * 40


def test_half_a_download_does_not_count_as_cached(cache: Path, qwen: Path, bundled: None) -> None:
    put_into_cache(cache, "Qwen/Qwen2-VL-2B-Instruct", qwen, leave_out="model.safetensors")
    assert cached_snapshot("Qwen/Qwen2-VL-2B-Instruct") is None
    assert choose("qwen2-vl", None, default()).kind == "bundled"


def test_missing_shards_do_not_count_as_cached(cache: Path, qwen: Path) -> None:
    snapshot = put_into_cache(cache, "some/model", qwen)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    assert cached_snapshot("some/model") is None


def test_aliases_and_bundled_names_work(bundled: None) -> None:
    assert choose("llava-ov", None, default()).name == "llava-onevision-mini"
    assert choose("qwen2-vl-tiny", None, default()).note == ""


def test_a_family_without_anything_here_says_how_to_get_it(bundled: None) -> None:
    with pytest.raises(ModelError, match=r"`checkpoint` Qwen/Qwen2.5-VL-3B-Instruct"):
        choose("qwen2.5-vl", None, default())


def test_an_unknown_model_lists_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"Did you mean 'qwen2-vl'.*llava-next-video"):
        choose("qwen2vll", None, default())


def test_a_checkpoint_needs_a_family(qwen: Path) -> None:
    with pytest.raises(UsageError, match="goes with a family"):
        choose(str(qwen), "other/model", default())


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_path_that_is_not_there_is_no_hub_id(name: str) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        choose(name, None, default())


def test_a_named_checkpoint_that_cannot_be_had_is_an_error_and_never_a_substitute(bundled: None) -> None:
    choice = choose("qwen2-vl", "someone/no-such-model", default())
    assert choice.kind == "hub"
    with pytest.raises(ModelError, match=r"someone/no-such-model: cannot be had.*no other model is taken"):
        fetched(choice)


def test_a_pinned_revision_is_part_of_the_choice() -> None:
    choice = choose("qwen2-vl", "owner/model@abc", default())
    assert (choice.name, choice.revision) == ("owner/model", "abc")


def changed_config(source: Path, target: Path, **changes: object) -> Path:
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_a_class_without_an_adapter_lists_those_with_one(invoke: Invoke, qwen: Path, tmp_path: Path) -> None:
    folder = changed_config(qwen, tmp_path / "m", architectures=["GPT2LMHeadModel"])
    result = invoke("run", "--model", folder, "clip.mp4", "what?")
    assert result.exit_code == 1
    assert "no adapter for the model class GPT2LMHeadModel" in result.stderr
    assert "Qwen2VLForConditionalGeneration" in result.stderr


def test_a_checkpoint_of_another_family_is_refused(invoke: Invoke, llava: Path) -> None:
    result = invoke("run", "--model", "qwen2-vl", "--checkpoint", llava, "clip.mp4", "what?")
    assert result.exit_code == 1
    assert "--model llava-onevision" in result.stderr


def test_a_folder_with_damaged_weights_is_an_error(invoke: Invoke, qwen: Path, tmp_path: Path) -> None:
    folder = changed_config(qwen, tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    result = invoke("run", "--model", folder, "clip.mp4", "what?")
    assert result.exit_code == 1
    assert "cannot be loaded" in result.stderr


def test_a_folder_without_a_config_is_an_error(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = invoke("run", "--model", tmp_path / "empty", "clip.mp4", "what?")
    assert result.exit_code == 1
    assert "no config.json" in result.stderr


@pytest.mark.parametrize("device", ["tpu9", "cuda:99"])
def test_a_device_that_is_not_there_is_a_usage_error(invoke: Invoke, qwen: Path, device: str) -> None:
    result = invoke("run", "--model", qwen, "--device", device, "clip.mp4", "what?")
    assert result.exit_code == 2
    assert device in result.stderr
