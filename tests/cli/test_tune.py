"""`vidsieve tune` from end to end on an untrained model, with a clock that is made up; then `eval` of what it wrote."""

import importlib
import json
import re
import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoint_fixtures import Invoke
from typer.testing import Result

import vidsieve
from vidsieve import load_policy
from vidsieve.framework.errors import MediaError, TuneError, UsageError
from vidsieve.harness.model_bench import Workbench
from vidsieve.harness.request_timing import NEIGHBOUR
from vidsieve.tuner.result import TuneResult
from vidsieve.tuner.search.trial_loop import SearchFailedError

SMALL = ("--trials", 2, "--examples", 4, "--policies", "vidcom2", "--frames", 8, "--in-process")
BUNDLED = ("tune", "--model", "qwen2-vl-tiny", *SMALL)


@pytest.fixture(autouse=True)
def _clock(fake_time: None, bundled: None) -> None:
    pass


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the first test that asks for a finished search keeps for the others."""
    return {"files": tmp_path_factory.mktemp("kept") / "files"}


@pytest.fixture
def searched(invoke: Invoke, kept: dict[str, Any], tmp_path: Path) -> Result:
    """What one finished search said; the files it wrote are in the folder of the test."""
    if "said" in kept:
        shutil.copytree(kept["files"], tmp_path, dirs_exist_ok=True)
        return kept["said"]
    said = invoke(*BUNDLED, "--latency-ms", 60)
    assert said.exit_code == 0, said.stderr
    shutil.copytree(tmp_path, kept["files"])
    return kept.setdefault("said", said)


def test_a_search_ends_with_a_sound_file_and_how_to_use_it(invoke: Invoke, searched: Result, tmp_path: Path) -> None:
    lines = searched.stdout.splitlines()
    assert lines[0].startswith("workload: qwen2-vl-tiny, 8 frames (4 x 36 visual tokens)")
    assert "data: bundled-static (accuracy)" in lines[0]
    assert sum(line.startswith("trial ") for line in lines) == 2
    assert invoke("check", "policy.yaml").exit_code == 0
    policy = vidsieve.load_policy(tmp_path / "policy.yaml")
    assert policy.retention_ratio is not None and policy.retention_ratio <= 0.5
    measured = policy.provenance["measured_on"]
    assert (measured["checkpoint"], measured["bundled"], measured["frames"]) == ("qwen2-vl-tiny", "yes", "8")
    commands = [line.strip() for line in lines if line.strip().startswith("vidsieve run ")]
    assert commands == ["vidsieve run --model qwen2-vl-tiny --frames 8 --policy policy.yaml"]
    rerun = invoke(*shlex.split(commands[0])[1:])
    assert rerun.exit_code == 0
    assert "measured elsewhere" not in rerun.stderr


@pytest.mark.usefixtures("searched")
def test_the_stored_held_out_examples_give_the_identical_accuracy(invoke: Invoke) -> None:
    stored = yaml.safe_load(Path("policy.yaml").read_text())["provenance"]["accuracy"]
    for words in ((), ("--heldout",), ("--model", "qwen2-vl-tiny")):
        told = json.loads(invoke("eval", "--policy", "policy.yaml", *words, "--json").stdout)
        assert told["accuracy"]["policy"] == stored["policy"]
        assert told["accuracy"]["uncompressed"] == stored["uncompressed"]
        assert told["accuracy"]["attained_retention"] == pytest.approx(stored["attained_retention"], abs=1e-6)
        assert told["stored"] == stored["policy"]["value"]
    other = json.loads(invoke("eval", "--policy", "policy.yaml", "--examples", 5, "--seed", 3, "--json").stdout)
    assert other["accuracy"]["examples"] == 5
    assert other["stored"] is None
    assert "identical" in invoke("eval", "--policy", "policy.yaml").stdout


def test_eval_chooses_model_and_data_once(
    invoke: Invoke, qwen: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    for home, name in (("harness.session", "choose"), ("harness.data.user_data", "LabelledData")):
        original = getattr(importlib.import_module(f"vidsieve.{home}"), name)
        counted = partial(lambda name, original, *given, **more: calls.append(name) or original(*given, **more), name)
        monkeypatch.setattr(f"vidsieve.{home}.{name}", partial(counted, original))
    result = invoke("eval", "--model", qwen, "--data", dataset, "--frames", 4, "--policy", "vidcom2", "--examples", 2)
    assert result.exit_code == 0
    assert calls == ["choose", "LabelledData"]


def test_a_busy_gpu_is_warned_about_by_run_and_eval(
    invoke: Invoke, qwen: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = Workbench.timed

    def crowded(self: Workbench, *given: object) -> object:
        self.notices[:] = [NEIGHBOUR]
        return timed(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Workbench, "timed", crowded)
    for words in (("run",), ("eval", "--examples", 2)):
        result = invoke(*words, "--model", qwen, "--data", dataset, "--frames", 4, "--max-new-tokens", 1)
        assert f"warning: {NEIGHBOUR}" in result.stderr, words


def test_json_is_one_document_and_nothing_else(invoke: Invoke) -> None:
    result = invoke(*BUNDLED, "--speedup", 1.5, "--json")
    document = json.loads(result.stdout)
    assert document["provenance"]["target"]["speedup"] == 1.5
    assert result.stderr.count("trial ") == 2


def test_labelled_data_and_a_folder_of_videos_can_be_tuned_on(invoke: Invoke, qwen: Path, dataset: Path) -> None:
    words = ("tune", "--model", qwen, *SMALL, "--speedup", 1.3, "--max-new-tokens", 2)
    assert invoke(*words, "--data", dataset, "--out", "labelled.yaml").exit_code == 0
    assert Path("labelled.report.html").exists() and Path("labelled.pareto.svg").exists()
    told = json.loads(invoke("eval", "--model", qwen, "--data", dataset, "--policy", "labelled.yaml", "--json").stdout)
    assert told["accuracy"]["metric"] == "accuracy"
    assert told["stored"] == told["accuracy"]["policy"]["value"]
    result = invoke(*words, "--videos", dataset.parent, "--out", "agreed.yaml")
    assert result.exit_code == 0
    assert "held-out agreement" in result.stdout
    assert "accuracy" not in result.stdout


def test_a_target_below_the_floor_is_exit_code_3(invoke: Invoke) -> None:
    result = invoke(*BUNDLED, "--latency-ms", 5)
    assert result.exit_code == 3
    assert "floor" in result.stderr
    assert not Path("policy.yaml").exists()


def test_an_existing_file_is_refused_before_anything_runs(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("policy.yaml").write_text("mine")

    def never(*args: object, **more: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("vidsieve.harness.model_loading.load", never)
    result = invoke(*BUNDLED, "--latency-ms", 60)
    assert result.exit_code == 2
    assert "--force" in result.stderr
    assert Path("policy.yaml").read_text() == "mine"


@pytest.mark.usefixtures("searched")
def test_force_replaces_the_file(invoke: Invoke) -> None:
    Path("policy.yaml").write_text("mine")
    assert invoke(*BUNDLED, "--latency-ms", 60, "--force").exit_code == 0
    assert Path("policy.yaml").read_text().startswith("format: 1")


def interrupt_scoring(monkeypatch: pytest.MonkeyPatch, at_call: int) -> None:
    """Ctrl-C at the given call of `score`."""
    original, calls = Workbench.score, []

    def score(self: Workbench, policy: object, examples: object) -> object:
        calls.append(policy)
        if len(calls) == at_call:
            raise KeyboardInterrupt
        return original(self, policy, examples)  # type: ignore[arg-type]

    monkeypatch.setattr(Workbench, "score", score)


def test_an_interruption_writes_the_best_so_far(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_scoring(monkeypatch, 3)
    result = invoke(*BUNDLED, "--latency-ms", 60)
    assert result.exit_code == 130
    assert "vidsieve show policy.yaml" in result.stderr
    assert invoke("check", "policy.yaml").exit_code == 0
    assert vidsieve.load_policy(Path("policy.yaml")).provenance["confirmed"] is False


@pytest.mark.parametrize(
    ("error", "words"),
    [(MediaError("a.mp4: ends after 3 of 16 frames."), "`skip_bad`|--skip-bad"), (KeyError("x"), "This is a bug")],
)
def test_a_late_error_writes_the_best_so_far_and_says_how_to_go_on(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def search(*_: object, **__: object) -> None:
        best = replace(load_policy("vidcom2"), provenance={"confirmed": False})
        result = TuneResult(
            policy=best, target_ms=60.0, already_met=False, latency=None, accuracy=None, confirmed=False
        )
        raise SearchFailedError(result, error) from error

    monkeypatch.setattr("vidsieve.harness.search_entry.search", search)
    result = invoke(*BUNDLED, "--latency-ms", 60)
    assert result.exit_code == 1
    assert "ended by an error: the best so far, vidcom2, is in policy.yaml" in result.stderr
    assert re.search(words, result.stderr)
    assert load_policy(Path("policy.yaml")).name == "vidcom2"


def test_an_interruption_before_anything_was_found_writes_nothing(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_scoring(monkeypatch, 1)
    result = invoke(*BUNDLED, "--latency-ms", 60)
    assert result.exit_code == 130
    assert not Path("policy.yaml").exists()


@pytest.mark.usefixtures("searched")
def test_a_full_disk_does_not_lose_the_policy(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(self: TuneResult, path: object, *, force: bool = False) -> None:
        raise TuneError("--out policy.yaml: could not be written: No space left on device.")

    monkeypatch.setattr(TuneResult, "save", save)
    result = invoke(*BUNDLED, "--latency-ms", 60, "--force")
    assert result.exit_code == 1
    assert "No space left" in result.stderr
    printed = result.stdout[result.stdout.index("format: 1") :]
    assert yaml.safe_load(printed)["name"].startswith("vidcom2")


def test_heldout_of_a_policy_that_was_not_tuned_is_refused(invoke: Invoke) -> None:
    result = invoke("eval", "--model", "qwen2-vl-tiny", "--heldout")
    assert result.exit_code == 2
    assert "stores no held-out examples" in result.stderr


@pytest.mark.usefixtures("searched")
def test_heldout_on_other_data_is_refused(invoke: Invoke, dataset: Path) -> None:
    result = invoke("eval", "--policy", "policy.yaml", "--data", dataset, "--heldout")
    assert result.exit_code == 1
    assert "Give the data it was tuned on" in result.stderr


def test_from_python_by_name_and_on_a_loaded_model(qwen: Path, dataset: Path, tmp_path: Path) -> None:
    from transformers import Qwen2VLForConditionalGeneration

    options = {"speedup": 1.3, "trials": 2, "examples": 4, "policies": ["vidcom2"], "max_new_tokens": 2, "frames": 4}
    named = vidsieve.tune(str(qwen), data=dataset, in_process=True, **options)
    loaded = Qwen2VLForConditionalGeneration.from_pretrained(qwen)
    result = vidsieve.tune(loaded, data=dataset, **options)
    assert result.policy.stages and named.accuracy is not None and result.accuracy is not None
    assert result.accuracy.policy == named.accuracy.policy
    assert vidsieve.load_policy(result.save(tmp_path / "p.yaml")).name.startswith("vidcom2")
    assert "generate" not in vars(loaded)
    with pytest.raises(UsageError, match="fixed by the loaded model"):
        vidsieve.tune(loaded, data=dataset, device="cpu", **options)
    with pytest.raises(UsageError, match="no setting named 'frame'"):
        vidsieve.tune(str(qwen), data=dataset, frame=4, **options)


def test_a_tokenizer_is_processor_enough_for_a_loaded_model(qwen: Path, dataset: Path) -> None:
    from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

    model = Qwen2VLForConditionalGeneration.from_pretrained(qwen)
    model.config._name_or_path = ""
    options = {"speedup": 1.3, "trials": 1, "examples": 4, "policies": ["vidcom2"], "max_pixels": 96 * 96, "frames": 4}
    result = vidsieve.tune(model, processor=AutoTokenizer.from_pretrained(qwen), data=dataset, **options)
    assert result.policy.provenance["measured_on"]["revision"] == "in memory"


def test_the_same_command_goes_on_after_an_interruption(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        interrupt_scoring(patched, 3)
        stopped = invoke(*BUNDLED, "--latency-ms", 60)
    assert stopped.exit_code == 130
    assert "the same command" in stopped.stderr
    resumed = invoke(*BUNDLED, "--latency-ms", 60)
    assert resumed.exit_code == 0, resumed.stderr
    assert "going on with policy.study.db: 1 trials are there already" in resumed.stdout
    assert resumed.stdout.count("trial 1/2") == 0
    assert vidsieve.load_policy(Path("policy.yaml")).provenance["confirmed"] is True


@pytest.mark.usefixtures("searched")
def test_another_search_on_the_same_study_is_a_usage_error_that_names_the_difference(invoke: Invoke) -> None:
    other = invoke(*BUNDLED, "--latency-ms", 61, "--force")
    assert other.exit_code == 2
    assert "target: 60 ms (ttft) in the study, 61 ms (ttft) now" in other.stderr
    assert invoke(*BUNDLED, "--latency-ms", 61, "--force", "--fresh").exit_code == 0
    assert len(list(Path().glob("policy.study*.db"))) == 2


@pytest.mark.usefixtures("searched")
def test_report_and_picture_stand_beside_the_policy_and_are_not_replaced_unasked(invoke: Invoke) -> None:
    page = Path("policy.report.html").read_text()
    assert "vidcom2" in page and "held-out" in page
    assert Path("policy.pareto.svg").read_text().lstrip().startswith("<?xml")
    Path("policy.yaml").unlink()
    refused = invoke(*BUNDLED, "--latency-ms", 60)
    assert refused.exit_code == 2
    assert "policy.report.html" in refused.stderr


@pytest.mark.usefixtures("searched")
def test_confirm_measures_again_and_says_when_the_target_is_missed(invoke: Invoke) -> None:
    before = Path("policy.yaml").read_text()
    held = invoke("tune", "--confirm", "policy.yaml", "--in-process")
    assert held.exit_code == 0, held.stderr
    assert "confirmed ttft_ms" in held.stdout
    assert Path("policy.yaml").read_text() == before
    missed = invoke("tune", "--confirm", "policy.yaml", "--in-process", "--latency-ms", 25, "--out", "again.yaml")
    assert missed.exit_code == 3
    assert "not met here" in missed.stdout
    assert vidsieve.load_policy(Path("again.yaml")).provenance["confirmed"] is False


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--confirm", "vidcom2"), "stores no target"),
        (("--confirm", "none", "--speedup", 2), "removes nothing"),
        (("--confirm", "policy.yml"), "policy.yml"),
        (("--study", "a.db", "--storage", "grpc://h:1"), "exclude each other"),
        (("--join",), "needs --storage"),
        (("--storage", "study.db"), "must be a URL"),
        (("--devices", "cuda:0,cuda:0"), "different devices"),
        (("--devices", "cuda:0", "--in-process"), "exclude each other"),
        (("--policies", "vidcom"), "Did you mean 'vidcom2'"),
        (("--patience", 0), "--patience"),
        (("--study", "nowhere/a.db"), "does not exist"),
    ],
)
def test_options_that_make_no_sense_are_refused(invoke: Invoke, words: tuple[object, ...], told: str) -> None:
    target = () if "--speedup" in words or words[1:2] == ("vidcom2",) else ("--latency-ms", 60)
    place = () if "--devices" in words or "--in-process" in words else ("--in-process",)
    result = invoke("tune", "--model", "qwen2-vl-tiny", *target, *place, *words)
    assert result.exit_code in (1, 2)
    assert told in result.stderr


def test_compositions_are_searched_beside_a_named_policy_and_the_verdict_says_who_won(
    invoke: Invoke, tmp_path: Path
) -> None:
    small = [word if word != "vidcom2" else "vidcom2,composed" for word in BUNDLED]
    result = invoke(*small, "--latency-ms", 60, "--trials", 4, "--json")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"compositions: [\d,]+ of \d+ stages, besides published ones", result.stderr)
    told = json.loads(result.stdout)["provenance"]["composition"]
    assert told["trials"] >= 1
    assert told["beat"] in (True, False)
    assert vidsieve.load_policy(tmp_path / "policy.yaml").hash
    assert invoke("show", "policy.yaml").exit_code == 0


def test_an_unknown_policy_is_refused_before_a_model_is_loaded_and_composed_is_offered(invoke: Invoke) -> None:
    refused = invoke("tune", "--model", "qwen2-vl-tiny", "--latency-ms", 60, "--policies", "composd")
    assert refused.exit_code == 2
    assert "--policies: no policy named 'composd'. Did you mean 'composed'?" in refused.stderr
