"""Write the files of a search: the policy, its picture and its report."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vidsieve.framework.errors import UsageError, VidsieveError
from vidsieve.tuner.trial_failure import reason_of

if TYPE_CHECKING:
    from vidsieve.tuner.result import TuneResult


class Outputs:
    """`policy.yaml` with `policy.report.html` and `policy.pareto.svg` in the same folder.

    What a search left that was interrupted, or killed while it wrote, is replaced when it is resumed.

    Raises:
        UsageError: a file is there already and is not ours to replace, or the folder cannot be written to.
    """

    def __init__(self, policy: Path, *, force: bool, resumable: bool) -> None:
        from vidsieve.tuner.atomic_files import check_output

        self.policy = policy.expanduser()
        self.report = self.policy.with_name(f"{self.policy.stem}.report.html")
        self.picture = self.policy.with_name(f"{self.policy.stem}.pareto.svg")
        self._force = force or (resumable and self._unfinished())
        for path in (self.policy, self.report, self.picture):
            check_output(path, force=self._force)

    def _unfinished(self) -> bool:
        """Whether the policy that is there was written before its search had written everything."""
        confirmed = confirmed_of(self.policy)
        return confirmed is False or (confirmed is True and not (self.report.exists() and self.picture.exists()))

    def write_policy(self, result: "TuneResult") -> None:
        """Write the policy file, whole or not at all. Raises as `TuneResult.save` does."""
        result.save(self.policy, force=self._force)
        self._force = True

    def write_companions(self, result: "TuneResult") -> list[str]:
        """Write report and picture; they can be made again, so what goes wrong with them is returned as warnings."""
        from vidsieve.report import write_pareto

        return [*self.write_report(result), *self._attempt(write_pareto, result, self.picture)]

    def write_report(self, result: "TuneResult") -> list[str]:
        """Write the report alone; what goes wrong is returned as warnings."""
        from vidsieve.report import write_report

        return self._attempt(write_report, result, self.report)

    @staticmethod
    def _attempt(write: Callable[..., Path], result: "TuneResult", path: Path) -> list[str]:
        try:
            write(result, path, force=True)
        except Exception as error:  # whatever it is: the policy is found and written, and must not be lost for this
            return [
                f"{path.name} could not be written: {error if isinstance(error, VidsieveError) else reason_of(error)}"
            ]
        return []


def confirmed_of(policy: Path) -> bool | None:
    """Whether a search confirmed the policy in a file; None where none wrote it."""
    from vidsieve.framework.policy.file import load_policy

    if not policy.is_file():
        return None
    try:
        confirmed = load_policy(policy).provenance.get("confirmed")
    except (VidsieveError, UsageError):
        return None
    return confirmed if isinstance(confirmed, bool) else None
