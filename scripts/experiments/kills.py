"""Kill searches at random moments, go on with the same command, and see what is lost.

    python scripts/experiments/kills.py --kills 50

Every search is `vidsieve tune` as typed, in a folder of its own. SIGKILL hits the tuner (not its children) somewhere in
start-up, bounds, trials, the final looks, or while the files are written; then the same command runs again. After every
kill: finished trials are compared with those seen before, the children must go by themselves, and a policy file that is
there must be whole. Writes `data/kills.json`, which `--table` prints; a run that is broken off goes on with `--more`.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna

from vidsieve.framework.errors import VidsieveError
from vidsieve.framework.policy.file import load_policy

STORE = Path(__file__).parent / "data" / "kills.json"
VIDSIEVE = Path(sys.executable).with_name("vidsieve")
OPTIONS = ["--model", "qwen2-vl-tiny", "--speedup", "1.05", "--trials", "12", "--examples", "16"]
AIMS = {"start-up": 3, "trials": 6, "final looks": 3, "writing": 1}
"""What a session waits for before it is killed, with weights; the phase that was hit is read off afterwards."""
NEARLY_ALL = 10
"""Finished trials from which on a session may be left alone until its final looks."""
CHILDREN_GO_WITHIN_S = 10.0


@dataclass
class Kill:
    """One session that was killed. `children_s`: until the last child was gone; None where one stayed."""

    search: int
    phase: str
    second: float
    finished: int
    lost: int
    changed: int
    told_but_lost: int
    run_twice: int
    policy: str
    children: int
    children_s: float | None


@dataclass
class Session:
    """One run of the command, with its lines as they come."""

    folder: Path
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        command = [str(VIDSIEVE), "tune", *OPTIONS, "--out", str(self.policy)]
        self.began, self._policy_before = time.monotonic(), self._policy_now
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def policy(self) -> Path:
        return self.folder / "policy.yaml"

    @property
    def _policy_now(self) -> int:
        """When the policy file was written; 0 if there is none."""
        return self.policy.stat().st_mtime_ns if self.policy.exists() else 0

    @property
    def writing(self) -> bool:
        """Whether this session has written the policy, be there one from an earlier session or not."""
        return self._policy_now != self._policy_before

    @property
    def picture(self) -> Path:
        return self.folder / "policy.pareto.svg"

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def trials_told(self) -> int:
        """The last trial that was reported as finished."""
        told = [line for line in self.lines if line.startswith("trial ")]
        return int(told[-1].split()[1].split("/")[0]) if told else 0

    @property
    def phase(self) -> str:
        """How far it has got, by what it has said."""
        text = "\n".join(self.lines)
        if self.writing:
            return "writing"
        if "confirming " in text or "re-rank: " in text:
            return "final looks"
        if "going on with" in text or "trial 1/" in text or "score uncompressed" in text:
            return "trials"
        return "bounds" if "find the floor" in text else "start-up"

    def ended(self) -> bool:
        return self.process.poll() is not None

    def wait_for(self, reached: Any, seconds: float) -> None:
        """Until `reached()` is true, then `seconds` more, or to its end."""
        while not reached() and not self.ended():
            time.sleep(0.02)
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.ended():
            time.sleep(0.02)

    def kill(self) -> tuple[int, float | None]:
        """SIGKILL the tuner alone; how many children it had, and how long the last one stayed."""
        children = children_of(self.process.pid)
        self.process.kill()
        self.process.wait()
        start = time.monotonic()
        while time.monotonic() - start < CHILDREN_GO_WITHIN_S:
            if not any(alive(pid) for pid in children):
                return len(children), round(time.monotonic() - start, 2)
            time.sleep(0.02)
        return len(children), None


def state_and_parent(pid: int) -> tuple[str, int]:
    """As the system tells them; a process that is gone is dead and has no parent."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return "X", 0
    return state, int(parent)


def children_of(pid: int) -> list[int]:
    """Its children now."""
    every = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [each for each in every if state_and_parent(each)[1] == pid]


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    return state_and_parent(pid)[0] not in "XZ"


def finished_trials(folder: Path) -> dict[int, Any]:
    """The finished trials of a study, by number, with all they hold; read with Optuna alone."""
    path = folder / "policy.study.db"
    if not path.exists():
        return {}
    try:
        study = optuna.load_study(study_name="vidsieve", storage=f"sqlite:///{path}")
    except KeyError:  # killed before the study had its name
        return {}
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    return {t.number: [t.params, t.values, t.user_attrs, str(t.datetime_complete)] for t in done}


def run_twice(trials: dict[int, Any]) -> int:
    """Measured trials beyond the first of the same parameters and policy; those that say "same as" were not measured.

    What failed or was too slow may come back: the latter with another retention ratio, so with another policy.
    """
    measured = Counter()
    for params, _, attributes, _ in trials.values():
        trial_result = attributes["vidsieve"]
        if not trial_result["reason"].startswith("same as trial") and trial_result["verdict"] != "failed":
            measured[json.dumps([params, trial_result["policy_hash"]], sort_keys=True)] += 1
    return sum(count - 1 for count in measured.values())


def policy_state(path: Path) -> str:
    """none, whole, or what is wrong with it."""
    if not path.exists():
        return "none"
    try:
        load_policy(path)
    except VidsieveError as error:
        return f"invalid: {error}"
    return "whole"


def aim(session: Session, rng: random.Random, known: int) -> None:
    """Let a session run to a random moment, or to its end."""
    wanted = rng.choices(list(AIMS), list(AIMS.values()))[0]
    if known < NEARLY_ALL and wanted in ("final looks", "writing"):
        wanted = "trials"  # else most searches would run through to their final looks at once
    late = ("final looks", "writing")
    if wanted == "start-up":
        session.wait_for(lambda: True, rng.uniform(0.05, 15.0))
    elif wanted == "trials":
        more = rng.choice((0, 1, 1, 2))
        least = known + more if more else 0
        session.wait_for(
            lambda: session.phase in late or (session.phase == "trials" and session.trials_told >= least),
            rng.uniform(0.0, 5.0),
        )
    elif wanted == "final looks":
        session.wait_for(lambda: session.phase in late, rng.uniform(0.0, 25.0))
    else:
        session.wait_for(lambda: session.writing, rng.uniform(0.0, 0.8))


def search(
    number: int, folder: Path, rng: random.Random, more: Callable[[], bool], note: Callable[[Kill], None]
) -> dict[str, Any]:
    """One search, killed and taken up again until it ends; once no `more` kills are wanted it may finish in peace."""
    known = finished_trials(folder)
    while True:
        session, spared = Session(folder), not more()
        if not spared:
            aim(session, rng, len(known))
        if spared or session.ended():
            code = session.process.wait()
            break
        phase, second, told = session.phase, round(session.seconds, 1), session.trials_told
        children, children_s = session.kill()
        now = finished_trials(folder)
        kill = Kill(
            search=number,
            phase=phase,
            second=second,
            finished=len(now),
            lost=sum(trial not in now for trial in known),
            changed=sum(trial in now and now[trial] != old for trial, old in known.items()),
            told_but_lost=max(0, told - len(now)),
            run_twice=run_twice(now),
            policy=policy_state(folder / "policy.yaml"),
            children=children,
            children_s=children_s,
        )
        note(kill)
        known = now
        if session.picture.exists():  # the last thing that is written: the search was over
            code = 0
            break
    last = finished_trials(folder)
    checked = subprocess.run([VIDSIEVE, "check", folder / "policy.yaml"], capture_output=True, text=True)
    end = {
        "search": number,
        "exit_code": code,
        "last_line": session.lines[-1] if session.lines else "",
        "trials": len(last),
        "lost": sum(trial not in last for trial in known),
        "changed": sum(trial in last and last[trial] != old for trial, old in known.items()),
        "run_twice": run_twice(last),
        "check": checked.returncode,
        "report": (folder / "policy.report.html").exists(),
        "left_over": sorted(path.name for path in folder.iterdir() if path.name.endswith(".tmp")),
    }
    print(f"search {number} ended: {end}", flush=True)
    if code or checked.returncode:
        print("\n".join(session.lines[-15:]), checked.stdout, checked.stderr, flush=True)
    return end


def table(store: dict[str, Any]) -> str:
    """Kills by the phase they hit, with what each kind of loss came to, and how the searches ended."""
    rows = store["kills"]
    lines = [
        "| killed in | kills | finished trials lost | changed | run twice | broken policy files | children left |",
        "|---|---|---|---|---|---|---|",
    ]
    for phase in [*dict.fromkeys(sorted(row["phase"] for row in rows)), "all"]:
        mine = [row for row in rows if phase in (row["phase"], "all")]
        lost = sum(row["lost"] + row["told_but_lost"] for row in mine)
        broken = sum(row["policy"].startswith("invalid") for row in mine)
        stayed = sum(row["children_s"] is None for row in mine)
        changed, twice = sum(row["changed"] for row in mine), sum(row["run_twice"] for row in mine)
        lines.append(f"| {phase} | {len(mine)} | {lost} | {changed} | {twice} | {broken} | {stayed} |")
    ends = store["searches"]
    whole = sum(end["exit_code"] == 0 and end["check"] == 0 for end in ends)
    wrong = sum(end["lost"] + end["changed"] + end["run_twice"] for end in ends)
    slowest = max((row["children_s"] or 0.0 for row in rows), default=0.0)
    lines += [
        "",
        f"{len(ends)} searches of {store['command']}; {whole} ended with a policy that `vidsieve check` passes; at "
        f"their ends {wrong} finished trials were lost, changed or run twice. The slowest child was gone "
        f"{slowest:.2f} s after its tuner. {store['date']}, {store['versions']}.",
    ]
    return "\n".join(lines)


def keep(store: dict[str, Any]) -> None:
    """Write what there is."""
    store["command"] = f"`vidsieve tune {' '.join(OPTIONS)}`"
    store["date"] = datetime.now(UTC).date().isoformat()
    store["versions"] = ", ".join(f"{name} {version(name)}" for name in ("vidsieve", "optuna", "torch"))
    STORE.write_text(json.dumps(store, indent=1) + "\n")


def main() -> None:
    """Kill, or tabulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=600.0, help="no more kills after that")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--more", action="store_true", help="go on from data/kills.json")
    parser.add_argument("--table", action="store_true", help="print what is there")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    store: dict[str, Any] = {"kills": [], "searches": []}
    if args.more or args.table:
        store = json.loads(STORE.read_text())
    until = time.monotonic() + 60 * args.minutes

    def more() -> bool:
        return len(store["kills"]) < args.kills and time.monotonic() < until

    def note(kill: Kill) -> None:
        store["kills"].append(asdict(kill))
        keep(store)
        print(f"kill {len(store['kills'])}: {asdict(kill)}", flush=True)

    while not args.table and more():
        number = 1 + max((row["search"] for row in [*store["kills"], *store["searches"]]), default=0)
        folder = Path(tempfile.mkdtemp(prefix="kills-"))
        store["searches"].append(search(number, folder, random.Random(1000 * args.seed + number), more, note))
        keep(store)
        shutil.rmtree(folder, ignore_errors=True)
    print(table(store))


if __name__ == "__main__":
    main()
