"""`Study`: the Optuna study of a search, in memory, in one SQLite file under a lock, or on a server others share."""

import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from vidsieve.framework.errors import TuneError, UsageError
from vidsieve.framework.task import Example
from vidsieve.tuner.examples import list_name
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.space.candidate import Candidate
from vidsieve.tuner.space.search_space import Space
from vidsieve.tuner.study.record import TrialResult, trial_result_from_json, trial_result_to_json
from vidsieve.tuner.study.storage import (
    StudyLock,
    open_storage,
    sqlite_path,
    storage_errors,
    with_retries,
    without_password,
)

SQLITE_TAILS = ("-journal", "-wal", "-shm")
"""What a killed process leaves next to a SQLite file, and what that file is broken without."""
RETRIES = 3
WAIT_S = 1.0
SPACE = "explored"
"""Where a search keeps what it measured before its first trial."""
ALIVE_S = 900.0
HOLDER = "holder"
LISTS, SPLITS = "example lists", "example splits"
BLOB = "vidsieve"
"""The attribute of a trial that holds its result; the others are for people who open the study."""


class StudyMismatchError(UsageError):
    """The study that is there belongs to another search. `fields` holds one line a difference.

    `left` says which of its examples are left where nothing but the data differs.
    """

    def __init__(self, place: Any, fields: Sequence[str], left: str = "") -> None:
        self.fields = list(fields)
        elsewhere = "name another `study`, or start anew with `fresh` (the old file is kept)."
        if "://" in str(place) and sqlite_path(place) is None:
            elsewhere = "or name another `study_name`."
        if left:
            elsewhere = f"or give `skip_bad` to go on with the examples that are left ({left}), {elsewhere}"
        super().__init__(
            f"study {place}: holds another search, and going on with it would mix two:\n"
            + "\n".join(fields)
            + f"\nRepeat the first command, {elsewhere}"
        )


class Study:
    """The trials and records of a search in an Optuna study. `resumed`: it had some when it was opened.

    `shared` studies live on a server: several tuners add trials, and trials that run may be another's.

    Raises:
        TuneError: another tuner holds it, or the disk or server refused.
        UsageError: a storage that cannot be opened.
    """

    def __init__(self, request: TuneRequest) -> None:
        self.place, self._request = without_password(request.storage), request
        path = sqlite_path(request.storage)
        self._holding = False
        self._lists: dict[str, list[str]] = {}
        self._search_list: str | None = None
        self._lock = StudyLock(path) if path is not None else None
        try:
            if path is not None and request.fresh:
                set_aside(path)
            self.shared = request.storage is not None and path is None and isinstance(request.storage, str)
            self.optuna = self._open(request)
            self.resumed = self.get("fingerprint") is not None
            if self.shared and not request.join:
                self._hold()
        except BaseException:
            self.close()
            raise

    def _open(self, request: TuneRequest) -> Any:
        """Open or create the study; a joining tuner must find it there."""
        import optuna

        with storage_errors(self.place), quiet():
            storage = open_storage(request.storage)
            if request.join:
                return self._join(storage)
            name = request.study_name if storage is not None else None
            study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
            # the random stream must not start again where a study is resumed, or it suggests the same candidates twice
            study.sampler = self._sampler(len(study.get_trials(deepcopy=False)))
            return study

    def _join(self, storage: Any) -> Any:
        import optuna

        try:
            study = optuna.load_study(study_name=self._request.study_name, storage=storage)
        except KeyError:
            raise TuneError(
                f"study {self.place}: holds no search named {self._request.study_name!r} to join. Start one without "
                "`join` first."
            ) from None
        study.sampler = self._sampler(int(time.time()) % 2**20)
        return study

    def _sampler(self, salt: int) -> Any:
        import optuna

        seed = self._request.seed
        if salt:
            seed = int(np.random.SeedSequence([seed, salt]).generate_state(1)[0])
        return optuna.samplers.TPESampler(
            multivariate=True,
            group=True,
            constant_liar=self.shared or self._request.parallel > 1,
            seed=seed,
            n_startup_trials=max(4, min(10, self._request.trials // 3)),
        )

    def claim(self, fields: Mapping[str, str], *, anew: bool = False) -> None:
        """Write the fingerprint, or check it; a tuner that joins waits for the first one's measurements.

        `anew` writes over the one that is there.

        Raises:
            StudyMismatchError: with every field that differs.
            TuneError: the tuner that started the search has gone before there was anything to join.
        """
        if self._request.join:
            self._wait_for("fingerprint")
        stored = None if anew else self.get("fingerprint")
        if stored is None:
            self.put("fingerprint", dict(fields))
            if not anew:
                return
            stored = fields
        wrong = differences(stored, fields)
        if wrong:
            raise StudyMismatchError(self.place, wrong)
        if self._request.join:
            self._wait_for(SPACE)
        if not self.shared:
            self._reap()

    def _wait_for(self, key: str) -> None:
        """Wait until the tuner that started a shared search has put `key` there: both must search the same space."""
        while self.get(key) is None:
            holder = self.get(HOLDER)
            if not holder or not _alive(holder):
                raise TuneError(
                    f"study {self.place}: the tuner that started {self._request.study_name!r} stopped before its first "
                    "trial. Run its command again, then join."
                )
            time.sleep(WAIT_S)

    def _reap(self) -> None:
        """Queue trials again that were running when their tuner died: under the lock no other tuner is at work."""
        for trial in self.optuna.get_trials(deepcopy=False):
            if trial.state.name == "RUNNING":
                self.abandon(trial.number, trial.params, trial.user_attrs.get("retry", 0))

    def abandon(self, number: int, params: Mapping[str, Any], retry: int) -> None:
        """End a trial without a result, and put its parameters back in the queue a few times at most."""
        with storage_errors(self.place):
            trial = with_retries(lambda: self.optuna.get_trials(deepcopy=False))[number]
            if trial.state.is_finished():
                return  # recorded at the very moment of the interruption: nothing is lost
            # the queued parameters are known before the space has suggested it, or all of it
            params = {**trial.system_attrs.get("fixed_params", {}), **params}
            if params and retry < RETRIES:
                # queued first: one that is killed between the two queues it twice, which is better than never
                with_retries(lambda: self.optuna.enqueue_trial(dict(params), user_attrs={"retry": retry + 1}))
            with_retries(lambda: self.optuna.tell(number, state=_state("FAIL"), skip_if_finished=True))

    def get(self, key: str) -> Any:
        """Return what was put under `key`, or None."""
        with storage_errors(self.place):
            return with_retries(lambda: self.optuna.user_attrs).get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a JSON-able value under `key`."""
        with storage_errors(self.place):
            with_retries(lambda: self.optuna.set_user_attr(key, value))
        if self._holding and key != HOLDER:
            self._heartbeat()

    def keep_examples(self, digests: Mapping[str, Sequence[str]]) -> None:
        """Keep which examples each split has now; lists of earlier sessions stay, for the outcomes made on them."""
        splits = {split: list_name(names) for split, names in digests.items()}
        known = list(self.get(LISTS) or [])
        for split, name in splits.items():
            if name not in known:
                self.put(f"examples {name}", list(digests[split]))
                known.append(name)
        if splits != self.get(SPLITS):
            self.put(LISTS, known)
            self.put(SPLITS, splits)
        self._lists = {name: self.get(f"examples {name}") for name in known}
        self._search_list = splits["search"]

    def example_lists(self) -> dict[str, list[str]]:
        """Return all lists of examples that outcomes in the study were made on, by name."""
        return self._lists

    def example_digests(self) -> dict[str, list[str]] | None:
        """Return which examples each split had in the last session; None before the first."""
        splits = self.get(SPLITS)
        return None if splits is None else {split: self.get(f"examples {name}") for split, name in splits.items()}

    def enqueue(self, params: Mapping[str, Any]) -> None:
        """Queue these parameters, once."""
        with storage_errors(self.place), quiet():
            with_retries(lambda: self.optuna.enqueue_trial(dict(params), skip_if_exists=True))

    def ask(self, propose: Callable[[], Mapping[str, Any] | None] = lambda: None) -> Any:
        """Ask for the next trial: one that is queued, else the sampler's, with the parameters that `propose` fixes."""
        with storage_errors(self.place), quiet():
            waiting = (_state("WAITING"),)
            if not with_retries(lambda: self.optuna.get_trials(deepcopy=False, states=waiting)):
                fixed = propose()
                if fixed:
                    with_retries(lambda: self.optuna.enqueue_trial(dict(fixed)))
            return with_retries(self.optuna.ask)

    def tell(self, trial: Any, trial_result: TrialResult) -> None:
        """Give the study the constraints, then the value: a trial without constraints would count as feasible."""
        with storage_errors(self.place), quiet():
            for name, amount in trial_result.violation.items():
                with_retries(lambda n=name, a=amount: trial.set_constraint(n, a))  # type: ignore[misc]
            for name, value in _readable(trial_result).items():
                with_retries(lambda n=name, v=value: trial.set_user_attr(n, v))  # type: ignore[misc]
            blob = trial_result_to_json(trial_result) | {"examples": self._search_list}
            with_retries(lambda: trial.set_user_attr(BLOB, blob))
            # recording twice is harmless: the first answer of a server may have got lost
            with_retries(lambda: self.optuna.tell(trial, trial_result.value, skip_if_finished=True))
        if self._holding:
            self._heartbeat()

    def trial_results(self, space: Space, examples: Sequence[Example]) -> list[TrialResult]:
        """Rebuild the results of all finished trials, in their order, numbered from 1.

        Raises:
            TuneError: a trial makes another policy now than it did when it ran.
        """
        found: list[TrialResult] = []
        with storage_errors(self.place):
            trials = with_retries(lambda: self.optuna.get_trials(deepcopy=False))
        for trial in trials:
            stored = trial.user_attrs.get(BLOB)
            if trial.state.name != "COMPLETE" or stored is None:
                continue
            candidate = self._candidate(space, trial.params, stored)
            stored = {**stored, "number": len(found) + 1}
            listed = self._lists.get(stored["examples"]) if stored["examples"] != self._search_list else None
            found.append(trial_result_from_json(stored, candidate, examples, listed))
        return found

    def _candidate(self, space: Space, params: Mapping[str, Any], stored: Mapping[str, Any]) -> Candidate | None:
        if stored["policy_hash"] is None:
            return None
        candidate = rebuilt(space, params, stored["retention_ratio"])
        if candidate.policy.hash != stored["policy_hash"]:
            raise TuneError(
                f"study {self.place}: trial {stored['number']} was another policy when it ran. Start anew with `fresh`."
            )
        return candidate

    def _hold(self) -> None:
        """Claim a study on a server, where there is no lock, by a heartbeat; refuse while another's is recent."""
        holder = self.get(HOLDER)
        me = {"pid": os.getpid(), "host": platform.node()}
        if holder and not _same(holder, me) and _alive(holder):
            raise TuneError(
                f"study {self.place}: another tuner (process {holder['pid']} on {holder['host']}) is working on it. "
                "Give `join` to help it, or wait for it."
            )
        self._holding = True
        self._heartbeat()

    def _heartbeat(self) -> None:
        self.put(HOLDER, {"pid": os.getpid(), "host": platform.node(), "beat_s": time.time()})

    def close(self) -> None:
        """Release the study; safe to call twice."""
        if self._holding:
            self._holding = False
            # once is enough: where the server has gone, others see that nobody shows life
            with suppress(Exception):
                self.optuna.set_user_attr(HOLDER, None)
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def rebuilt(space: Space, params: Mapping[str, Any], retention_ratio: float | None) -> Candidate:
    """Rebuild the candidate of a finished trial's parameters, at the retention ratio it ran with."""
    import optuna

    with quiet():
        return space.suggest(optuna.trial.FixedTrial(dict(params)), lambda base, policy: retention_ratio or 1.0)


def set_aside(path: Path) -> Path | None:
    """Give an existing study another name, so that a new one can begin; None if there is none."""
    if not path.exists():
        return None
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(path.stat().st_mtime))
    aside = path.with_name(f"{path.stem}.{stamp}{path.suffix}")
    count = 1
    while aside.exists():
        count += 1
        aside = path.with_name(f"{path.stem}.{stamp}-{count}{path.suffix}")
    try:
        os.replace(path, aside)
        for tail in SQLITE_TAILS:
            with suppress(FileNotFoundError):
                os.replace(f"{path}{tail}", f"{aside}{tail}")
    except OSError as error:
        raise TuneError(f"study {path}: cannot be set aside: {error.strerror or error}.") from None
    return aside


def differences(stored: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """List the fields that differ, a line each; empty if the two searches are one."""
    names = [*stored, *(name for name in now if name not in stored)]
    return [
        f"  {name}: {stored.get(name, 'not there')} in the study, {now.get(name, 'not there')} now"
        for name in names
        if stored.get(name) != now.get(name)
    ]


def _readable(trial_result: TrialResult) -> dict[str, Any]:
    """Return what a person who opens the study with another program wants to see of a trial."""
    columns: dict[str, Any] = {"verdict": trial_result.verdict}
    if trial_result.reason:
        columns["reason"] = trial_result.reason
    if trial_result.candidate is not None:
        columns["policy"] = trial_result.policy.name
        columns["retention_ratio"] = trial_result.policy.retention_ratio
    if trial_result.latency is not None:
        columns["latency_ratio"] = trial_result.latency.ratio.value
    if trial_result.change is not None:
        columns["change_points"] = 100 * trial_result.change
    return columns


def _same(holder: Mapping[str, Any], me: Mapping[str, Any]) -> bool:
    return all(holder.get(name) == value for name, value in me.items())


def _alive(holder: Mapping[str, Any]) -> bool:
    """Whether the tuner that holds a shared study may still be at work."""
    if holder.get("host") == platform.node():
        return _runs(int(holder["pid"]))
    return time.time() - float(holder.get("beat_s", 0)) < ALIVE_S


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _state(name: str) -> Any:
    import optuna

    return optuna.trial.TrialState[name]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's notices that `multivariate` and `group` are experimental."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(verbosity)
