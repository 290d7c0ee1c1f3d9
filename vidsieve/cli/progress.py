"""Print the progress of a search: one line a trial, and on a terminal a bar for the step in progress."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn

from vidsieve.cli.options import with_flags
from vidsieve.cli.output import minutes, note, say, workload_line
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.registry import Registry
from vidsieve.harness.model_choice import Choice
from vidsieve.harness.session import OpenBenches, open_benches
from vidsieve.harness.setup import Setup
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.result import Bounds, Listener, TrialEvent

QUIET_S = 20.0


class SearchProgress(Listener):
    """Draws a search on `console`. Where that is no terminal: plain lines, a step again every 20 seconds."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._what, self._told_at = "", 0.0
        self._best: float | None = None

    def __enter__(self) -> "SearchProgress":
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def step(self, what: str, done: int, total: int) -> None:
        """Draw a bar on a terminal; elsewhere a line when a step starts and now and then."""
        if self._console.is_terminal:
            if self._task is None:
                self._task = self._bar.add_task(what, total=total)
            self._bar.update(self._task, description=what, completed=done, total=total)
            return
        now = self._clock()
        if what.startswith("score ") and what != "score uncompressed":
            return
        if what != self._what or now - self._told_at > QUIET_S:
            self._what, self._told_at = what, now
            self._print(f"  {what} {done}/{total}")

    def started(self, bounds: Bounds) -> None:
        """Print uncompressed, floor, target; what takes part and what does not."""
        base, floor, metric = bounds.baseline, bounds.floor, f"{bounds.metric}_ms"
        if bounds.already_met:
            self._print(
                f"The uncompressed model is within the target already ({base.value:.4g} of {bounds.target_ms:.4g} ms); "
                "searching for the fastest policy that keeps the accuracy."
            )
        self._print(
            f"{metric}: uncompressed {base.value:.4g} [{base.low:.4g}, {base.high:.4g}] · floor {floor.value:.4g} "
            f"({bounds.floor_policy}) · target {bounds.target_ms:.4g}"
        )
        if bounds.model_error is not None:
            error, count = bounds.model_error, bounds.configurations
            self._print(f"latency model: off by {error:.1%} at most over {count} configurations")
        self._print(f"searching: {', '.join(bounds.policies)}")
        for name, reason in bounds.set_aside.items():
            self._print(f"set aside: {name} ({reason})")
        for warning in bounds.warnings:
            self._print(f"warning: {warning}")

    def trial(self, event: TrialEvent) -> None:
        """Print a line."""
        self._print(trial_line(event))

    def confirming(self, policy: Policy) -> None:
        """Print what is measured last."""
        self._print(f"confirming {policy.name} on fresh latency runs and on the held-out examples")

    def notice(self, text: str) -> None:
        """Print the sentence."""
        self._print(text)

    def stopping(self) -> None:
        """Print what the search still waits for."""
        self._print("stopping after the running trial, then the best so far is written; Ctrl-C again stops now")

    def _print(self, text: str) -> None:
        self._console.print(with_flags(text), markup=False, highlight=False, soft_wrap=True)


def trial_line(event: TrialEvent) -> str:
    """Write a trial in one line: what, how fast, how good on the search examples, what became of it, how long yet."""
    ratio = f" r={event.retention_ratio:.3f}" if event.retention_ratio is not None else ""
    settings = " ".join(f"{name}={_short(value)}" for name, value in event.settings.items())
    latency = f"{event.latency.value:.4g} ms" if event.latency else "no latency"
    scorer = "p(gold)" if event.scorer == "p_gold" else "correct"
    change = f" · {scorer} {event.change_points:+.1f} points vs uncompressed" if event.change_points is not None else ""
    scored = f" at {event.scored} examples" if event.verdict == "pruned" else ""
    reason = f" ({event.reason})" if event.reason else ""
    eta = f" · {minutes(event.eta_s)} left" if event.eta_s is not None else ""
    name = f"{event.policy or 'candidate'}{ratio}{' ' + settings if settings else ''}"
    return f"trial {event.number}/{event.total} {name} · {latency}{change} · {event.verdict}{scored}{reason}{eta}"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@contextmanager
def opened_with_progress(
    setup: Setup,
    choice: Choice,
    registry: Registry,
    request: TuneRequest,
    *,
    devices: list[str] | None,
    in_process: bool,
    json: bool,
) -> Iterator[tuple[SearchProgress, OpenBenches]]:
    """Open the benches of a search and print its workload; with `json` standard output is left alone."""
    with (
        search_progress(json) as listener,
        open_benches(
            setup,
            choice,
            registry,
            request,
            devices=devices,
            in_process=in_process,
            notice=note,
            step=listener.step,
        ) as opened,
    ):
        (note if json else say)(workload_line(opened))
        yield listener, opened


def search_progress(quiet: bool) -> SearchProgress:
    """Make a listener that draws on standard output, or on standard error where that is for a document."""
    return SearchProgress(Console(stderr=quiet))
