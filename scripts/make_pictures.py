"""Draw the pictures of the documents that show a view: two policies on a clip of the bundled task.

    python scripts/make_pictures.py            # writes docs/pictures/view.png
    python scripts/make_pictures.py --check    # fails if it would hold other tokens or other words

The tokens that a policy keeps can differ between processors where two scores are all but equal, so the check compares
what is drawn by its counts (scripts/data/view_picture.json), which are written along.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from vidsieve import View, load_policy, show
from vidsieve.harness.one_request import open_one, written_under
from vidsieve.harness.session import choose_for
from vidsieve.harness.setup import Setup

ROOT = Path(__file__).resolve().parent.parent
PICTURE, COUNTS = ROOT / "docs" / "pictures" / "view.png", ROOT / "scripts" / "data" / "view_picture.json"
MODEL, POLICIES = "qwen2-vl-mini", ("vidcom2", "dycoke")
MOST_BYTES = 250_000


def seen() -> View:
    """The view: what each policy kept of the first held-out clip."""
    chosen = choose_for(lambda registry: load_policy(POLICIES[0], registry=registry), Setup(model=MODEL))
    session, example = open_one(chosen, None, "", notice=print)
    policies = [load_policy(name, registry=chosen.registry) for name in POLICIES]
    written = list(written_under(session, policies, example))
    clip = session.bench.runner.reader.clip(example)
    reports = [one.report for one in written if one.report is not None]
    return show(reports, clip, words=[one.words for one in written], title=f"{MODEL}, a held-out clip")


def counts(view: View) -> dict[str, Any]:
    """What the picture shows, in numbers."""
    names = ("policy", "baseline_tokens", "prompt_tokens", "per_frame")
    return {"model": MODEL, "policies": [{name: one[name] for name in names} for one in view.to_list()]}


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail on other counts")
    check = parser.parse_args().check
    view = seen()
    found = counts(view)
    if check:
        same = json.loads(COUNTS.read_text(encoding="utf-8")) == found
        print("the same counts" if same else "other counts; run python scripts/make_pictures.py")
        return 0 if same else 1
    path = view.write(PICTURE, force=True)
    size = path.stat().st_size
    if size > MOST_BYTES:
        print(f"{path}: {size} bytes, {MOST_BYTES} at most", file=sys.stderr)
        return 1
    COUNTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
