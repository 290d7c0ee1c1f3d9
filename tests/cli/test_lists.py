"""`ls`, `show` and `check`."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Invoke
from vidsieve import load_policy
from vidsieve.framework.registry import default

PLUGIN = """
from vidsieve import Scores, Stage, VideoTokens, hookimpl, tunable

class Norm(Stage):
    '''Score by norm.'''
    power: float = tunable(1.0, low=0.5, high=2.0, help="exponent")

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        return Scores(tokens.features.float().norm(dim=-1) ** self.power)

@hookimpl
def register_stages(register):
    register("{name}", Norm)
"""


def test_every_published_policy_is_listed_and_sound(invoke: Invoke) -> None:
    listed = json.loads(invoke("ls", "policies", "--json").stdout)["policies"]
    names = [row["name"] for row in listed]
    assert names == sorted(default().policies)
    assert all(row["summary"] == load_policy(row["name"]).summary for row in listed)
    assert invoke("check", *names).exit_code == 0


def test_every_stage_is_listed_with_its_hooks(invoke: Invoke) -> None:
    listed = {row["name"]: row for row in json.loads(invoke("ls", "stages", "--json").stdout)["stages"]}
    assert set(listed) >= {"top-k", "vidcom2.token-score", "dycoke.kv"}
    assert listed["top-k"]["hooks"] == ["select_tokens"]


def test_a_model_that_is_only_a_name_is_told_apart_from_one_that_is_here(invoke: Invoke, bundled: None) -> None:
    listed = {row["family"]: row for row in json.loads(invoke("ls", "models", "--json").stdout)["models"]}
    assert listed["qwen2-vl"]["on this machine"] == "bundled qwen2-vl-tiny"
    assert listed["qwen2.5-vl"]["on this machine"] == "nothing; name a checkpoint"


def test_a_shown_policy_has_settings_ranges_and_reach(invoke: Invoke) -> None:
    shown = json.loads(invoke("show", "vidcom2", "--frames", 8, "--tokens", 36, "--json").stdout)["policy"]
    assert shown["retention_ratio"] == 0.25
    assert shown["attainable"]["low"] == pytest.approx(1 / 288)
    budget = shown["stages"][0]["settings"][0]
    assert (budget["name"], budget["low"], budget["high"], budget["log"]) == ("temperature", 0.003, 1.0, True)
    assert "temperature" in invoke("show", "vidcom2").stdout


def test_a_name_that_is_policy_and_stage_shows_both(invoke: Invoke) -> None:
    assert set(json.loads(invoke("show", "random", "--json").stdout)) == {"policy", "stage"}


def test_an_unknown_name_offers_the_nearest(invoke: Invoke) -> None:
    result = invoke("show", "vidcom")
    assert result.exit_code == 2
    assert "Did you mean 'vidcom2'" in result.stderr


def test_a_stage_of_a_lone_file_is_listed_and_shown(invoke: Invoke, tmp_path: Path) -> None:
    plugin = tmp_path / "norm_plugin.py"
    plugin.write_text(PLUGIN.format(name="cli-test-norm"))
    assert "cli-test-norm" in invoke("ls", "stages", "--plugin", plugin).stdout
    shown = json.loads(invoke("show", "cli-test-norm", "--plugin", plugin, "--json").stdout)["stage"]
    assert shown["settings"][0]["help"] == "exponent"


@pytest.mark.parametrize("text", ["import no_such_module_at_all", "1 +", "x = 1"])
def test_a_plugin_file_that_fails_is_told_with_its_path(invoke: Invoke, tmp_path: Path, text: str) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(text)
    result = invoke("ls", "--plugin", plugin)
    assert result.exit_code == 1
    assert str(plugin) in result.stderr


def test_all_faults_of_all_files_are_told_with_lines(invoke: Invoke, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("format: 1\nname: bad\nretention_ratio: 25\nstages:\n- {use: top-q}\nnotes: x\n")
    result = invoke("check", bad, tmp_path / "missing.yaml", "vidcom2")
    assert result.exit_code == 1
    assert all(f"{bad}:{line}:" in result.stderr for line in (3, 5, 6))
    assert "missing.yaml: no such file" in result.stderr
    assert "vidcom2: ok" in result.stdout
    verdicts = json.loads(invoke("check", bad, "vidcom2", "--json").stdout)
    assert [verdict["ok"] for verdict in verdicts] == [False, True]
    assert len(verdicts[0]["faults"]) == 3
