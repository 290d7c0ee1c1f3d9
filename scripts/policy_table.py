"""Print the table of all published policies on both bundled models, measuring the cells that are missing.

    python scripts/policy_table.py --write                        everything; hours on two idle cores
    python scripts/policy_table.py --policies vidcom2,fastv       some policies; the rest is printed as stored
    python scripts/policy_table.py --what static,ttft --ratios .25  some columns or rows
    python scripts/policy_table.py --jobs 0                       measure nothing, print what is stored

Every finished cell goes to scripts/data/policy_table.json at once, and is measured again only if the policy, the
model, the questions or the rules of timing have changed: Ctrl-C loses nothing but the cells in work. Accuracy runs in
`--jobs` processes, timing behind it in one, alone. `--write` also stores the Markdown beside the data and in
docs/explanation/policies-measured.md, puts the headline into README.md, and draws docs/pictures/policies.svg.
"""

import argparse
import multiprocessing
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from policy_cells.headline import headline_text
from policy_cells.page import quoted, table_text
from policy_cells.picture import picture
from policy_cells.store import Store
from policy_cells.wanted import MODEL_NAMES, TIMED, Cell, cells, policies
from policy_cells.worker import ignore_interrupts, measure

from vidsieve.bundled.scene import RUNGS
from vidsieve.framework.errors import VidsieveError

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "scripts" / "data" / "policy_table.json"
PAGE = ROOT / "docs" / "explanation" / "policies-measured.md"
PICTURE = ROOT / "docs" / "pictures" / "policies.svg"
README, HEADLINE = ROOT / "README.md", DATA.with_name("headline.md")


class Pass:
    """The cells that are missing, measured and stored one by one."""

    def __init__(self, store: Store, todo: Sequence[Cell], questions: int, seed: int) -> None:
        self.store, self.todo, self.questions, self.seed = store, list(todo), questions, seed
        self.failed: list[str] = []

    def run(self, jobs: int) -> None:
        """Accuracy side by side, then the clock alone."""
        scored = [cell for cell in self.todo if cell.what not in TIMED]
        timed = [cell for cell in self.todo if cell.what in TIMED]
        self._pool("scored", scored, jobs)
        self._pool("timed", timed, 1)

    def _pool(self, verb: str, todo: Sequence[Cell], jobs: int) -> None:
        """Measure in `jobs` processes, each on one model and rung at a time, whose features it then has."""
        # a forked child would inherit torch's threads in whatever state they are
        spawn, began = multiprocessing.get_context("spawn"), time.perf_counter()
        pools = [ProcessPoolExecutor(1, mp_context=spawn, initializer=ignore_interrupts) for _ in range(jobs)]
        queues, running = Queues(todo, jobs), dict[Future, tuple[int, Cell]]()
        try:
            while True:
                busy = {number for number, _ in running.values()}
                for number in set(range(jobs)) - busy:
                    if (cell := queues.next(number)) is not None:
                        running[pools[number].submit(measure, cell, self.questions, self.seed)] = (number, cell)
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    self._take(running.pop(future)[1], future)
                _progress(verb, len(todo) - queues.left - len(running), len(todo), began)
        except KeyboardInterrupt:
            for future, (_, cell) in running.items():
                if future.exception() is None:  # waits for what is in work, a few seconds
                    self._take(cell, future)
            raise
        finally:
            for pool in pools:
                pool.shutdown(wait=True, cancel_futures=True)

    def _take(self, cell: Cell, future: "Future") -> None:
        """Store a cell; one that failed in an unforeseen way is told and left out, the others go on."""
        error = future.exception()
        if error is not None:
            self.failed.append(f"{cell.name}: {error or type(error).__name__}")
            return
        self.store.put(cell, *future.result())


class Queues:
    """Cells dealt to processes, a model's rung to each; one that has nothing left helps with the longest queue."""

    def __init__(self, todo: Sequence[Cell], jobs: int) -> None:
        groups: dict[tuple[str, str], deque[Cell]] = {}
        for cell in todo:
            groups.setdefault((cell.model, cell.what), deque()).append(cell)
        self._groups = deque(groups.values())
        self._own: list[deque[Cell]] = [deque() for _ in range(jobs)]

    @property
    def left(self) -> int:
        """Cells that nobody has begun."""
        return sum(map(len, [*self._groups, *self._own]))

    def next(self, number: int) -> Cell | None:
        """The next cell for a process; None when all are begun."""
        if not self._own[number] and self._groups:
            self._own[number] = self._groups.popleft()
        if self._own[number]:
            return self._own[number].popleft()
        longest = max(self._own, key=len)
        return longest.pop() if longest else None


def _progress(verb: str, done: int, total: int, began: float) -> None:
    left_s = (time.perf_counter() - began) / done * (total - done)
    end = "\n" if done == total else ""
    print(f"\r{verb} {done}/{total}, {left_s / 60:.1f} min left ", end=end, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODEL_NAMES), help="comma-separated")
    parser.add_argument("--policies", default="", help="comma-separated; all that are published if left out")
    parser.add_argument(
        "--what", default="", help=f"of {', '.join((*RUNGS, *TIMED))}; comma-separated, all if left out"
    )
    parser.add_argument("--ratios", default="", help="comma-separated; all of the table if left out")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="of each rung, eleven a clip")
    parser.add_argument("--seed", type=int, default=0, help="of the clips")
    parser.add_argument("--jobs", type=int, default=2, help="processes that score; 0 measures nothing")
    parser.add_argument("--data", type=Path, default=DATA, help="where cells are kept")
    parser.add_argument("--write", action="store_true", help="store the Markdown too")
    asked = parser.parse_args()
    asked.models = [name for name in asked.models.split(",") if name]
    if unknown := set(asked.models) - set(MODEL_NAMES):
        parser.error(f"--models: no bundled model {', '.join(sorted(unknown))}; there are {', '.join(MODEL_NAMES)}")
    asked.what = [name for name in asked.what.split(",") if name] or [*RUNGS, *TIMED]
    if unknown := set(asked.what) - {*RUNGS, *TIMED}:
        parser.error(f"--what: {', '.join(sorted(unknown))} is none of {', '.join((*RUNGS, *TIMED))}")
    try:
        asked.ratios = [float(ratio) for ratio in asked.ratios.split(",") if ratio]
    except ValueError:
        parser.error(f"--ratios: {asked.ratios!r} is no list of numbers")
    if asked.questions < 1 or asked.jobs < 0:
        parser.error("--questions must be above 0 and --jobs at least 0")
    return asked


QUESTIONS = 176
"""16 clips a rung."""


def main() -> int:
    """Measure what is missing, print, and with `--write` store."""
    asked = arguments()
    try:
        names = policies([name for name in asked.policies.split(",") if name])
    except VidsieveError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    store, status = Store(asked.data), 0
    wanted = cells(asked.models, names, asked.questions, asked.seed)
    chosen = [cell for cell in wanted if cell.what in asked.what and (not asked.ratios or cell.ratio in asked.ratios)]
    work = Pass(store, [cell for cell in chosen if not store.has(cell)], asked.questions, asked.seed)
    if asked.jobs:
        try:
            work.run(asked.jobs)
        except KeyboardInterrupt:
            print(f"\nstopped; finished cells are in {asked.data}: run again to go on", file=sys.stderr)
            return 130
        if not asked.policies and asked.models == list(MODEL_NAMES):
            store.keep_only(cell.name for cell in wanted)
        status = 1 if work.failed else 0
        print("".join(f"FAILED {failure}\n" for failure in work.failed), end="", file=sys.stderr)
    text = table_text(store.measured_on, store.cells)
    print(text)
    if asked.write:
        asked.data.with_suffix(".md").write_text(text, encoding="utf-8")
        PAGE.write_text(quoted(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
        headline = headline_text(store.measured_on, store.cells)
        HEADLINE.write_text(headline, encoding="utf-8")
        README.write_text(quoted(README.read_text(encoding="utf-8"), headline, HEADLINE.name), encoding="utf-8")
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_bytes(picture(store.cells, [name for name in MODEL_NAMES if name in store.measured_on]))
    return status


if __name__ == "__main__":
    sys.exit(main())
