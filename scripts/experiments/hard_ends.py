"""How searches end when something goes badly wrong: what the user is told, and whether the promises hold.

    python scripts/experiments/hard_ends.py            # all; or name some, which replaces their sections
    python scripts/experiments/hard_ends.py crash full-disk

Each is `vidsieve tune` as typed, with tiny settings, in a folder of its own. A stage that kills its process or runs out
of memory comes as a plugin file; the full disk is a small tmpfs, which only root can mount. Writes `data/hard_ends.md`.
"""

import argparse
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

STORE = Path(__file__).parent / "data" / "hard_ends.md"
VIDSIEVE = Path(sys.executable).with_name("vidsieve")
TINY = ["--model", "qwen2-vl-tiny", "--speedup", "1.05", "--examples", "4"]
THREE = ("--policies", "vidcom2", "--trials", "3")
SIX = ("--policies", "gentle.yaml,harmful.yaml", "--trials", "6", "--plugin", "harmful.py")
LAST = 8
"""Lines of a run that are shown."""
HARMS = {
    "crash": "os.kill(os.getpid(), signal.SIGSEGV)",
    "memory": "raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB')",
}
PLUGIN = """import os
import signal

import torch

from vidsieve import Scores, Stage, VideoTokens, hookimpl, tunable


class Harmful(Stage):
    \"\"\"Scores by norm; does harm once its power is above 1.2.\"\"\"

    power: float = tunable(1.0, low=0.5, high=2.0)

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        if self.power > 1.2:
            {harm}
        return Scores(tokens.features.float().norm(dim=-1) ** self.power)


@hookimpl
def register_stages(register):
    register("harmful", Harmful)
"""
POLICY = """format: 1
name: {name}
summary: Keep the tokens of largest norm.
retention_ratio: 0.3
stages:
  - {{use: harmful, power: {power}}}
  - {{use: top-k}}
search:
  harmful.power: {search}
"""


@dataclass(frozen=True)
class Ended:
    """A run that is over: how, and what it printed."""

    code: int
    text: str

    def must(self, code: int, *patterns: str) -> None:
        """Raise AssertionError unless it ended so and said so, without a traceback."""
        assert self.code == code, f"exit code {self.code}, expected {code}:\n{self.text}"
        assert "Traceback" not in self.text, self.text
        for pattern in patterns:
            assert re.search(pattern, self.text), f"not said: {pattern}\n{self.text}"

    def shown(self, what: str) -> str:
        """Its last lines, as Markdown."""
        lines = [line[:200] for line in self.text.rstrip().splitlines()[-LAST:]]
        return f"{what}, exit code {self.code}:\n\n```text\n" + "\n".join(lines) + "\n```"


class Run:
    """One run of the command in `folder`, its output in a file that can be looked into meanwhile."""

    def __init__(self, folder: Path, *options: str) -> None:
        descriptor, name = tempfile.mkstemp(prefix="hard-ends-", suffix=".log")
        self.log = Path(name)
        with open(descriptor, "wb") as output:
            self.process = subprocess.Popen(
                [VIDSIEVE, "tune", *TINY, "--out", "policy.yaml", *options],
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
            )

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def until(self, pattern: str) -> "Run":
        """Wait until it has said something, or has ended."""
        while not re.search(pattern, self.text) and self.process.poll() is None:
            time.sleep(0.05)
        return self

    def send(self, number: signal.Signals) -> "Run":
        """A signal to the tuner alone, as Ctrl-C comes to it: its children have a session of their own."""
        self.process.send_signal(number)
        return self

    def end(self) -> Ended:
        code = self.process.wait()
        text = self.text
        self.log.unlink()
        return Ended(code, text)


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="hard-ends-") as name:
        yield Path(name)


def checked(place: Path) -> None:
    """The policy file that is there passes `vidsieve check`."""
    subprocess.run([VIDSIEVE, "check", place / "policy.yaml"], check=True, capture_output=True)


def harmed(harm: str, reason: str) -> list[str]:
    """A search over a policy that does harm whatever is chosen, and one that does for some settings."""
    with folder() as place:
        (place / "harmful.py").write_text(PLUGIN.format(harm=HARMS[harm]))
        for name, power, search in (("gentle", 1.0, "{low: 0.9, high: 2.0}"), ("harmful", 1.5, "fixed")):
            told = POLICY.format(name=name, power=power, search=search)
            (place / f"{name}.yaml").write_text(told)
        ended = Run(place, *SIX).end()
        ended.must(0, f"set aside: harmful.*{reason}", rf"trial \d/6 gentle.*failed.*{reason}", "wrote policy.yaml")
        subprocess.run(
            [VIDSIEVE, "check", place / "policy.yaml", "--plugin", place / "harmful.py"],
            check=True,
            capture_output=True,
        )
        told = [line[:300] for line in ended.text.splitlines() if re.search(reason, line)]
        return ["Of the harm it says:\n\n```text\n" + "\n".join(told) + "\n```", ended.shown("The search goes on")]


def crash() -> list[str]:
    """A stage that ends its process with SIGSEGV."""
    return harmed("crash", "SIGSEGV")


def memory() -> list[str]:
    """A stage for which there is not enough memory."""
    return harmed("memory", "out of memory")


def full_disk() -> list[str]:
    """Study and policy on a disk that fills up, and has room again afterwards."""
    if os.geteuid() != 0:
        return ["Skipped: only root can mount a tmpfs."]
    with folder() as place:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=True)
        try:
            run = Run(place, *THREE).until("trial 1/")
            filler = place / "filler"
            with filler.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass
            ended = run.end()
            ended.must(1, "the disk is full. Make room", "run the same command again")
            filler.unlink()
            again = Run(place, *THREE).end()
            again.must(0, r"going on with .*: [1-9]\d* trials are there already", "wrote policy.yaml")
            checked(place)
            return [ended.shown("While it is full"), again.shown("The same command, once there is room")]
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)


def in_second_trial(place: Path) -> Run:
    """A search whose first trial is told and whose second one runs."""
    run = Run(place, *THREE).until("trial 1/")
    time.sleep(0.5)
    return run


def ctrl_c_once() -> list[str]:
    """Ctrl-C while a trial runs: it is finished, the best so far is written; the same command goes on."""
    with folder() as place:
        ended = in_second_trial(place).send(signal.SIGINT).end()
        ended.must(130, "stopping after the running trial", "the best so far", "go on: +the same command")
        checked(place)
        told = len(re.findall(r"^trial \d", ended.text, re.MULTILINE))
        again = Run(place, *THREE).end()
        again.must(0, f"going on with .*: {told} trials are there already", "wrote policy.yaml")
        checked(place)
        return [ended.shown("Interrupted"), again.shown("The same command")]


def ctrl_c_twice() -> list[str]:
    """Ctrl-C twice: it stops at once, and still writes the best so far."""
    with folder() as place:
        run = in_second_trial(place).send(signal.SIGINT).until("stopping after the running trial")
        began = time.monotonic()
        ended = run.send(signal.SIGINT).end()
        seconds = time.monotonic() - began
        ended.must(130, "Ctrl-C again stops now", "the best so far")
        checked(place)
        return [ended.shown(f"Interrupted twice, gone {seconds:.1f} s after the second")]


def two_tuners() -> list[str]:
    """A second tuner on the study of one that is at work."""
    with folder() as place:
        first = Run(place, *THREE).until("searching: ")
        second = Run(place, *THREE, "--out", "other.yaml", "--study", "policy.study.db").end()
        second.must(1, rf"another tuner \(process {first.process.pid} on .*\) is working on it")
        ended = first.until("trial 2/").send(signal.SIGINT).end()
        ended.must(130, "trial 2/", "the best so far")
        checked(place)
        return [second.shown("The second"), ended.shown("The first goes on, until it is interrupted")]


def other_study() -> list[str]:
    """A study that another checkpoint, and another Optuna, made."""
    with folder() as place:
        in_second_trial(place).send(signal.SIGINT).end().must(130)
        with sqlite3.connect(place / "policy.study.db") as study:
            changed = study.execute(
                "UPDATE study_user_attributes SET value_json = replace(replace(value_json, "
                '\'"optuna major": "\', \'"optuna major": "1\'), \'"model: revision": "\', \'"model: revision": "x\')'
                " WHERE key = 'fingerprint'"
            )
            assert changed.rowcount == 1
        study.close()
        ended = Run(place, *THREE).end()
        ended.must(2, "holds another search", r"optuna major: 1\d in the study, \d now", "--fresh")
        fresh = Run(place, *THREE, "--force", "--fresh").until("trial 1/").send(signal.SIGTERM).end()
        fresh.must(130, "trial 1/3")
        assert "going on with" not in fresh.text
        assert len(list(place.glob("policy.study*.db"))) == 2
        return [ended.shown("The same command"), fresh.shown("With --fresh, until it is ended with SIGTERM")]


ENDS: dict[str, Callable[[], list[str]]] = {
    "crash": crash,
    "memory": memory,
    "full-disk": full_disk,
    "ctrl-c-once": ctrl_c_once,
    "ctrl-c-twice": ctrl_c_twice,
    "two-tuners": two_tuners,
    "other-study": other_study,
}


def keep(name: str, section: str) -> None:
    """Put a section in its place in the file, in the order of ENDS."""
    versions = ", ".join(f"{package} {version(package)}" for package in ("vidsieve", "optuna", "torch"))
    head = (
        f"# How searches end\n\n`python scripts/experiments/hard_ends.py`, {datetime.now(UTC).date()}, {versions}.\n\n"
    )
    text = STORE.read_text() if STORE.exists() else ""
    sections = {part.partition(":")[0]: part.strip() for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]}
    sections[name] = section.strip()
    STORE.write_text(head + "\n\n".join(f"## {sections[each]}" for each in ENDS if each in sections) + "\n")


def main() -> None:
    """Run them, say what failed, and keep what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"which of {', '.join(ENDS)}; default: all")
    args = parser.parse_args()
    # a script started in the background is handed an ignored SIGINT, and so would its children be
    signal.signal(signal.SIGINT, signal.default_int_handler)
    failed = []
    for name in args.names or ENDS:
        if name not in ENDS:
            parser.error(f"no end named {name!r}")
        print(f"== {name}", flush=True)
        try:
            shown, verdict = ENDS[name](), "as promised"
        except AssertionError as error:
            shown, verdict = [f"```text\n{error}\n```"], "NOT as promised"
            failed.append(name)
        section = f"{name}: {verdict}\n\n{ENDS[name].__doc__}\n\n" + "\n\n".join(shown)
        print(section, flush=True)
        keep(name, section)
    if failed:
        raise SystemExit(f"not as promised: {', '.join(failed)}")


if __name__ == "__main__":
    main()
