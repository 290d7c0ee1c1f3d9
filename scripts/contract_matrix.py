"""Put every published policy on every model family through the contract, and print one row a policy.

    python scripts/contract_matrix.py --write                          every pair; a few minutes on one core
    python scripts/contract_matrix.py --policies fastv --families glm4v

Each family stands for its tiny random model from tests/adapters. The contract is `check_policy`: it generates, the
attained retention is the one asked for or declared, no text is touched, each row of a padded batch comes out as alone,
and nothing is left on the model. A cell says `ok`, `refused` with what the family lacks, or `FAILED`; the exit code is
1 if any failed. `--write` keeps the table in scripts/data/contract_matrix.md.
"""

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
import transformers

from vidsieve import __version__, load_policy
from vidsieve.framework import registry
from vidsieve.framework.errors import PlanError, StageError, UnknownNameError, VidsieveError
from vidsieve.testing.adapter_policies import DEEP, check_policy, missing, needs_depth

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "scripts" / "data" / "contract_matrix.md"


def verdict(family: str, name: str, reasons: list[str]) -> str:
    """What one cell says; what does not fit in it goes to `reasons`."""
    from adapters.kits import decoders_of, kits

    policy = load_policy(name)
    lacks = missing(registry.default().models[family], policy)
    try:
        with decoders_of() if needs_depth(policy) and not lacks else nullcontext():
            kit = kits()[family]()
            model = kit.build_model()
        check_policy(kit, model, policy)
    except Exception as error:  # the table goes on: that is what it is for
        if isinstance(error, VidsieveError) and not isinstance(error, PlanError | StageError):
            return f"refused: no {', '.join(lacks)}" if lacks else f"refused: [{_number(reasons, str(error))}]"
        text = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        return f"FAILED [{_number(reasons, f'{name} on {family}: {text}')}]"
    return "FAILED: not refused" if lacks else "ok"


def _number(reasons: list[str], reason: str) -> int:
    """The footnote of a reason, its first line."""
    line = reason.split("\n")[0]
    if line not in reasons:
        reasons.append(line)
    return reasons.index(line) + 1


def matrix(policies: Sequence[str], families: Sequence[str]) -> tuple[str, int]:
    """The table as Markdown, and how many cells failed."""
    lines, reasons, failed, began = [], [], 0, time.perf_counter()
    for name in policies:
        start = time.perf_counter()
        row = [verdict(family, name, reasons) for family in families]
        failed += sum(cell.startswith("FAILED") for cell in row)
        deep = f" ({DEEP} layers)" if needs_depth(load_policy(name)) else ""
        lines.append(_line([name + deep, *row, f"{time.perf_counter() - start:.1f}"]))
        print(f"{name}: {sum(cell == 'ok' for cell in row)} ok of {len(row)}", file=sys.stderr, flush=True)
    versions = f"vidsieve {__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    head = [
        "Printed by `python scripts/contract_matrix.py`. Tiny random models, CPU, float32, no download.",
        f"{versions}, Python {platform.python_version()}; {time.perf_counter() - began:.0f} s for "
        f"{len(policies)} policies on {len(families)} families, {failed} failed.",
        "",
        _line(["policy", *families, "seconds"]),
        "|---" * (len(families) + 2) + "|",
    ]
    notes = [f"[{number}] {reason}  " for number, reason in enumerate(reasons, start=1)]
    return "\n".join([*head, *lines, *(["", *notes] if notes else [])]) + "\n", failed


def _line(columns: Sequence[str]) -> str:
    return f"| {' | '.join(columns)} |"


def chosen(asked: str, known: Sequence[str], flag: str) -> list[str]:
    """The names asked for, or all. Raises UnknownNameError."""
    names = [name for name in asked.split(",") if name]
    for name in names:
        if name not in known:
            raise UnknownNameError(flag, flag.strip("-"), name, known)
    return names or list(known)


def main() -> int:
    """Run, print, and with `--write` keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", default="", help="comma-separated; all that are published if left out")
    parser.add_argument("--families", default="", help="comma-separated; all if left out")
    parser.add_argument("--write", action="store_true", help=f"keep the table in {LOG.relative_to(ROOT)}")
    asked = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    torch.set_num_threads(1)
    known = registry.default()
    try:
        policies = chosen(asked.policies, sorted(known.policies), "--policies")
        families = chosen(asked.families, sorted(known.models), "--families")
    except VidsieveError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    text, failed = matrix(policies, families)
    print(text, end="")
    if asked.write:
        LOG.write_text(text, encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
