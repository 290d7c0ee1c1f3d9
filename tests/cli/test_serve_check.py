"""`vidsieve serve-check` tells what a server would do, without vLLM."""

import json
from pathlib import Path

import pytest
from checkpoint_fixtures import Invoke

from vidsieve import load_policy


def test_a_policy_that_can_be_served_comes_with_its_command(invoke: Invoke) -> None:
    size = ("--frames", "64", "--height", "128", "--width", "128")
    done = invoke("serve-check", "vidcom2", "--model", "qwen2-vl-mini", *size, "--retention", "0.25")
    assert done.exit_code == 0
    assert "64 frames of 128 x 128: 2048 visual tokens (32 x 8 x 8), 512 of them served" in done.stdout
    assert "VIDSIEVE_RETENTION=0.25 VIDSIEVE_POLICY=vidcom2 vllm serve " in done.stdout


@pytest.mark.parametrize(
    ("policy", "model", "reason"),
    [
        ("fastv", "qwen2-vl-tiny", "'fastv.prune' works inside the language model"),
        ("holitom", "qwen2-vl-tiny", "depends on what the video shows"),
        ("vidcom2", "llava-onevision-tiny", "`positions: compact`"),
    ],
)
def test_a_policy_that_cannot_says_why_and_fails(invoke: Invoke, policy: str, model: str, reason: str) -> None:
    done = invoke("serve-check", policy, "--model", model)
    assert done.exit_code == 1
    assert reason in done.stderr
    assert "vllm serve" not in done.stdout


def test_a_ratio_out_of_reach_is_no_length(invoke: Invoke, tmp_path: Path) -> None:
    done = invoke("serve-check", "evs", "--model", "qwen2-vl-tiny", "--retention", "0.01")
    assert done.exit_code == 1
    assert "it reaches" in done.stderr


def test_a_file_is_named_in_the_command_and_the_document_is_whole(invoke: Invoke, tmp_path: Path) -> None:
    file = tmp_path / "my policy.yaml"
    file.write_text(load_policy("vidcom2", settings={"positions": "compact"}).to_yaml())
    done = invoke("serve-check", str(file), "--model", "llava-onevision-tiny", "--json")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told["servable"] and told["kept_tokens"] == told["visual_tokens"] // 4
    assert f"VIDSIEVE_POLICY='{file}'" in told["command"]


def test_what_a_server_does_otherwise_is_told(invoke: Invoke) -> None:
    done = invoke("serve-check", "random", "--model", "qwen2-vl-tiny")
    assert done.exit_code == 0
    assert "otherwise than in transformers: its random choice depends on which video of the prompt" in done.stdout
    assert json.loads(invoke("serve-check", "random", "--model", "qwen2-vl-tiny", "--json").stdout)["remarks"]


@pytest.mark.parametrize("arguments", [("--frames", "0"), ("--retention", "25"), ("--height", "-3")])
def test_impossible_sizes_are_refused(invoke: Invoke, arguments: tuple[str, str]) -> None:
    done = invoke("serve-check", "vidcom2", "--model", "qwen2-vl-tiny", *arguments)
    assert done.exit_code == 2
    assert "Traceback" not in done.stderr
