"""The real workbench in a child process, beside one in this process."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from vidsieve.bundled.bundled_task import BundledTask
from vidsieve.framework.errors import ModelError, UsageError
from vidsieve.framework.policy.file import load_policy
from vidsieve.framework.registry import default
from vidsieve.harness.data.example_choice import choose_task
from vidsieve.harness.model_bench import Workbench
from vidsieve.harness.model_choice import Choice, choose
from vidsieve.harness.process.remote_bench import RemoteBench
from vidsieve.harness.session import open_remote, open_remotes, with_task
from vidsieve.harness.setup import Setup
from vidsieve.tuner.protocol import SmallerInput

SETUP = Setup(model="qwen2-vl-tiny", device="cpu")


def chosen(setup: Setup = SETUP) -> Choice:
    return choose(setup.model, setup.checkpoint, default())


@pytest.fixture(scope="module")
def near() -> Workbench:
    choice = chosen()
    return with_task(SETUP, choice, choose_task(SETUP, choice), default()).bench


@pytest.fixture(scope="module")
def far() -> Iterator[RemoteBench]:
    choice = chosen()
    with open_remote(SETUP, choice, choose_task(SETUP, choice)) as bench:
        yield bench


def test_it_is_the_same_bench(near: Workbench, far: RemoteBench) -> None:
    assert (far.shape, far.offers, far.clips, far.smaller) == (near.shape, near.offers, near.clips, near.smaller)
    assert far.describe() == near.describe()
    assert far.describe()["threads"] == "1"
    assert [far.clip_shape(clip)[1] for clip in range(far.clips)] == [near.clip_shape(c) for c in range(near.clips)]  # type: ignore[index]


@pytest.mark.parametrize("name", [None, "vidcom2", "random", "dycoke"])
def test_outcomes_are_equal_to_the_last_bit(near: Workbench, far: RemoteBench, name: str | None) -> None:
    policy = load_policy(name, retention_ratio=0.37) if name else None
    examples = BundledTask("static").examples("search", 36)
    assert list(far.score(policy, examples)) == list(near.score(policy, examples))


def test_smaller_inputs_are_equal_too(near: Workbench, far: RemoteBench) -> None:
    examples = BundledTask("static").examples("search", 9)
    for kind in near.smaller:
        smaller = SmallerInput(kind=kind, ratio=0.5)  # type: ignore[arg-type]
        assert list(far.score(smaller, examples)) == list(near.score(smaller, examples))


@pytest.mark.parametrize("metric", ["ttft", "e2e"])
def test_a_request_is_timed_in_the_same_parts(near: Workbench, far: RemoteBench, metric: str) -> None:
    policy = load_policy("vidcom2")
    ours, theirs = far.timed(policy, 0, metric), near.timed(policy, 0, metric)  # type: ignore[arg-type]
    assert set(ours) == set(theirs)
    assert ours[f"{metric}_ms"] > 0


def test_a_checkpoint_without_weights_is_told_as_ever(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(models / "qwen2-vl-tiny", folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    setup = Setup(model=str(folder))
    with (
        open_remote(setup, chosen(setup), BundledTask("static")) as bench,
        pytest.raises(ModelError, match="has no complete safetensors weights"),
    ):
        bench.start()


def test_a_device_that_is_not_there_leaves_no_child() -> None:
    with pytest.raises(UsageError, match="`device` cuda:77: torch sees"):
        open_remotes(SETUP, chosen(), BundledTask("static"), ["cuda:77"])


def test_a_device_named_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="cpu stands more than once"):
        open_remotes(SETUP, chosen(), BundledTask("static"), ["cpu", "cpu"])


def test_a_task_that_cannot_travel_is_refused_before_a_start() -> None:
    class Mine(BundledTask):
        def __init__(self) -> None:
            super().__init__("static")
            self.hook = lambda: None

    with pytest.raises(UsageError, match=r"the task .bundled-static. cannot be handed .* Define Mine in a module"):
        open_remote(SETUP, chosen(), Mine())


def test_a_task_of_the_running_script_is_refused_before_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(BundledTask):
        pass

    monkeypatch.setattr(Mine, "__module__", "__main__")
    with pytest.raises(UsageError, match="is defined in the running script"):
        open_remote(SETUP, chosen(), Mine())
