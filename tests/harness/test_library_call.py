"""`vidsieve.tune` as a library call: prints nothing, loads no command line, restores the process's settings."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import logging

import vidsieve
from vidsieve.framework.errors import UnknownNameError, UsageError
from vidsieve.framework.registry import default
from vidsieve.harness.model_choice import choose
from vidsieve.harness.model_loading import load
from vidsieve.harness.process_state import kept_threads
from vidsieve.harness.setup import Setup


def test_neither_importing_nor_naming_tune_loads_the_command_line_or_torch() -> None:
    code = "import sys, vidsieve; vidsieve.tune; print(sorted({'typer', 'rich', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_search_prints_nothing_and_restores_the_number_of_threads(
    bundled: None, dataset: Path, capfd: pytest.CaptureFixture[str], fake_time: None
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        vidsieve.tune(
            "qwen2-vl", checkpoint=None, latency_ms=90, data=dataset, policies=["vidcom2"], trials=1, examples=2,
            heldout_examples=2, rerank_examples=2, in_process=True,
        )  # fmt: skip
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert capfd.readouterr() == ("", "")


def test_loading_gives_back_the_verbosity_of_transformers(qwen: Path) -> None:
    found = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        with kept_threads():
            setup = Setup(model=str(qwen))
            load(choose(str(qwen), None, default()), setup, default())
        assert logging.get_verbosity() == logging.INFO and logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(found[0])
        if not found[1]:
            logging.disable_progress_bar()


@pytest.mark.parametrize(("settings", "said"), [
    ({"latency": 200}, "no setting named 'latency'. Did you mean 'latency_ms'"),
    ({"latency_ms": -1}, "`latency_ms`: must be a number above 0"),
    ({"latency_ms": 90, "frames": 0}, "`frames`: must be above 0"),
    ({}, "exactly one of `latency_ms` and `speedup`"),
])  # fmt: skip
def test_errors_name_settings_and_no_command_line_option(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        vidsieve.tune("qwen2-vl", **settings)
    assert said in str(caught.value) and "--" not in str(caught.value)
    assert isinstance(caught.value, UnknownNameError) == ("latency" in settings)


def test_the_signature_lists_every_setting() -> None:
    names = set(inspect.signature(vidsieve.tune).parameters)
    assert {"latency_ms", "speedup", "max_drop_points", "trials", "frames", "dtype", "listener"} <= names
