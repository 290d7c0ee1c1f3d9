"""`vidsieve.tune` as a library call: prints nothing, loads no command line, restores the process's settings."""

import contextlib
import inspect
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.utils import logging

import vidsieve
from vidsieve.framework.errors import ModelError, TargetUnreachableError, UnknownNameError, UsageError
from vidsieve.framework.registry import default
from vidsieve.harness.model_choice import choose
from vidsieve.harness.model_loading import load
from vidsieve.harness.session import open_session
from vidsieve.harness.setup import Setup


def test_neither_importing_nor_naming_tune_loads_the_command_line_or_torch() -> None:
    code = "import sys, vidsieve; vidsieve.tune; print(sorted({'typer', 'rich', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def settings_of_the_process() -> Iterator[Callable[[], tuple[Any, ...]]]:
    """Settings that a caller may have made; gives what reads them."""

    def read() -> tuple[Any, ...]:
        return (
            torch.get_num_threads(),
            logging.get_verbosity(),
            logging.is_progress_bar_enabled(),
            torch.is_grad_enabled(),
        )

    threads, verbosity, bars, _ = read()
    torch.set_num_threads(threads + 2)
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    yield read
    torch.set_num_threads(threads)
    logging.set_verbosity(verbosity)
    if not bars:
        logging.disable_progress_bar()


SEARCH = {"policies": ["vidcom2"], "trials": 1, "examples": 2, "heldout_examples": 2, "rerank_examples": 2}


def test_a_search_prints_nothing_and_restores_the_settings_of_the_process(
    bundled: None,
    dataset: Path,
    capfd: pytest.CaptureFixture[str],
    fake_time: None,
    settings_of_the_process: Callable[[], tuple[Any, ...]],
) -> None:
    before = settings_of_the_process()
    vidsieve.tune("qwen2-vl-tiny", latency_ms=90, data=dataset, in_process=True, **SEARCH)
    assert settings_of_the_process() == before
    with pytest.raises(TargetUnreachableError):
        vidsieve.tune("qwen2-vl-tiny", latency_ms=5, data=dataset, in_process=True, **SEARCH)
    assert settings_of_the_process() == before
    assert capfd.readouterr() == ("", "")


def test_a_loaded_model_is_given_back_in_the_mode_it_was_in(
    qwen: Path, dataset: Path, capfd: pytest.CaptureFixture[str], fake_time: None
) -> None:
    model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(qwen).train()
    frozen = model.model.visual.eval()
    for target in (90, 5):
        with contextlib.suppress(TargetUnreachableError):
            vidsieve.tune(model, processor=qwen, latency_ms=target, data=dataset, threads=3, frames=8, **SEARCH)
        assert model.training and model.lm_head.training and not any(each.training for each in frozen.modules())
    assert capfd.readouterr().out == ""


def test_a_session_restores_the_number_of_threads_around_each_of_its_calls(
    bundled: None, settings_of_the_process: Callable[[], tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = settings_of_the_process(), []
    session = open_session(Setup(model="qwen2-vl-tiny"), default())
    assert settings_of_the_process() == before
    generate = type(session.bench.runner).generate

    def watched(*given: Any, **named: Any) -> Any:
        seen.append(torch.get_num_threads())
        return generate(*given, **named)

    monkeypatch.setattr(type(session.bench.runner), "generate", watched)
    examples = session.task.examples("search", 2)
    session.bench.timed(None, 0, "ttft")
    session.bench.answer(None, examples[0])
    for _ in session.bench.score(None, examples):
        assert settings_of_the_process() == before
    assert settings_of_the_process() == before and session.bench.describe()["threads"] == "1"
    assert seen and set(seen) == {1}


def test_loading_gives_back_the_verbosity_of_transformers_also_after_an_error(
    qwen: Path, tmp_path: Path, settings_of_the_process: Callable[[], tuple[Any, ...]]
) -> None:
    before = settings_of_the_process()
    shutil.copytree(qwen, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no weights")
    for folder in (qwen, tmp_path / "broken"):
        with contextlib.suppress(ModelError):
            load(choose(str(folder), None, default()), Setup(model=str(folder), threads=1), default())
        assert settings_of_the_process() == before


@pytest.mark.parametrize(("settings", "said"), [
    ({"latency": 200}, "no setting named 'latency'. Did you mean 'latency_ms'"),
    ({"latency_ms": -1}, "`latency_ms`: must be a number above 0"),
    ({"latency_ms": 90, "frames": 0}, "`frames`: must be above 0"),
    ({}, "exactly one of `latency_ms` and `speedup`"),
])  # fmt: skip
def test_errors_name_settings_and_no_command_line_option(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        vidsieve.tune("qwen2-vl-tiny", **settings)
    assert said in str(caught.value) and "--" not in str(caught.value)
    assert isinstance(caught.value, UnknownNameError) == ("latency" in settings)


def test_the_signature_lists_every_setting() -> None:
    names = set(inspect.signature(vidsieve.tune).parameters)
    assert {"latency_ms", "speedup", "max_drop_points", "trials", "frames", "dtype", "listener"} <= names
