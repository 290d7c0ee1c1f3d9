"""Write docs/reference from the code, or say whether it is up to date.

python scripts/make_docs.py           writes the pages
python scripts/make_docs.py --check   writes nothing; exit code 1 and the names of stale pages
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from reference_pages import cli, errors, hooks, models, policies, policy_file, python_api, records, stages

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"

PAGES: dict[str, tuple[str, Callable[[], str]]] = {
    "cli.md": ("Commands and options", cli.page),
    "python.md": ("Public Python names", python_api.page),
    "hooks.md": ("Hooks: signature, sentence, example", hooks.page),
    "records-and-plans.md": ("What a stage is shown, and what it may answer", records.page),
    "stages.md": ("Built-in stages, their settings and ranges", stages.page),
    "policies.md": ("Published policies", policies.page),
    "models.md": ("Model families", models.page),
    "policy-file.md": ("Keys of a policy file", policy_file.page),
    "policy.schema.json": ("JSON Schema of policy files, for editors", policy_file.schema),
    "errors.md": ("Errors and exit codes", errors.page),
}


def render() -> dict[Path, str]:
    """Every generated file with the text it should have."""
    index = ["# Reference", "", "Generated from the code by `python scripts/make_docs.py`; do not edit by hand.", ""]
    index += [f"- [{name}]({name}): {title}" for name, (title, _) in PAGES.items()]
    texts = {REFERENCE / "README.md": "\n".join(index)}
    texts |= {REFERENCE / name: make() for name, (_, make) in PAGES.items()}
    return {path: text.rstrip() + "\n" for path, text in texts.items()}


def stale() -> list[Path]:
    """Files that are missing, differ from the code, or are no longer made."""
    texts = render()
    differing = [path for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    return differing + sorted(path for path in REFERENCE.glob("*") if path not in texts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if parser.parse_args().check:
        old = stale()
        for path in old:
            print(f"{path.relative_to(ROOT)} is out of date; run: python scripts/make_docs.py", file=sys.stderr)
        return 1 if old else 0
    REFERENCE.mkdir(parents=True, exist_ok=True)
    texts = render()
    for path in REFERENCE.glob("*"):
        if path not in texts:
            path.unlink()
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
