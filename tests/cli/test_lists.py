"""`ls`, `show` and `check`."""

import json
from pathlib import Path

import pytest
from checkpoint_fixtures import Invoke

from vidsieve import load_policy
from vidsieve.framework.registry import Registry, default

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

PARTIAL = """
from vidsieve import hookimpl
from vidsieve.adapters.adapter import Adapter

@hookimpl
def register_models(register):
    runs = frozenset({"score_tokens", "select_tokens", "evict_kv", "prune_kv"})
    classes, name = ("PartialForConditionalGeneration",), "my-org/partial-vl"
    register("partial-vl", Adapter(
        family="partial-vl", model_classes=classes, default_checkpoint=name, layouts=lambda *_: [], runs=runs))
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
    assert listed["qwen2-vl"]["on this machine"] == "bundled qwen2-vl-mini"
    assert listed["qwen2.5-vl"]["on this machine"] == "nothing; name a checkpoint"


def test_what_each_family_can_do_is_listed_for_programs(invoke: Invoke) -> None:
    listed = {row["family"]: row for row in json.loads(invoke("ls", "models", "--json").stdout)["models"]}
    assert set(listed) == set(default().models)
    for family, adapter in default().models.items():
        assert set(listed[family]["hooks"]) == adapter.runs
        assert set(listed[family]["offers"]) == adapter.offers
        assert listed[family]["default checkpoint"] == adapter.default_checkpoint
    assert listed["qwen2-vl"]["hooks"][0] == "reduce_frames" and listed["qwen2-vl"]["hooks"][-1] == "prune_kv"
    assert listed["qwen2-vl"]["image beside video"] is True
    assert listed["glm4v"]["image beside video"] is False
    assert listed["glm4v"]["needs"] == [] and "font" in listed["ernie-4.5-vl"]["needs"][1]


def test_what_each_family_can_do_fits_eighty_columns(invoke: Invoke, bundled: None) -> None:
    lines = invoke("ls", "models").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    found = {line.split()[0]: line.split()[1:] for line in lines if line and not line.startswith(" ")}
    assert found["gemma4"] == ["google/gemma-4-e2b-it", "-"]  # of the second table
    (gemma,) = (line for line in lines if line.startswith("gemma4") and "question" in line)
    (qwen,) = (line for line in lines if line.startswith("qwen2-vl") and "question" in line)
    assert gemma.split()[1:3] == ["tokens", "yes"]
    assert qwen.split()[1:6] == ["frames", "tokens", "layers", "kv", "yes"]
    assert any("bundled" in line for line in lines if line.startswith("qwen2-vl"))
    assert lines.index("inputs: made from a video's frames by torch alone; but") < len(lines) - 1


def test_a_family_that_carries_out_part_of_a_step_names_the_hooks(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, own = tmp_path / "partial_family.py", Registry(installed=False)
    plugin.write_text(PARTIAL)
    own.add_file(plugin)
    monkeypatch.setattr("vidsieve.cli.ls.add_plugins", lambda plugin: own)  # no other test may find the family
    told = invoke("ls", "models").stdout
    (line,) = (line for line in told.splitlines() if line.startswith("partial-vl") and "question" in line)
    assert line.split()[1:4] == ["score_tokens", "select_tokens", "kv"]
    assert "partial-vl needs its own processor and torchvision." in told


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
