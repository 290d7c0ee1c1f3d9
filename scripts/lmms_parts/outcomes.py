"""What `vidsieve eval` scores, example by example. Run by scripts/lmms_eval_check.py in lmms-eval's environment."""

import json
import sys
from pathlib import Path

from vidsieve import load_policy
from vidsieve.framework.registry import default
from vidsieve.harness.session import open_session
from vidsieve.harness.setup import Setup

job = json.loads(Path(sys.argv[1]).read_text())
policy = None if job["policy"] is None else load_policy(job["policy"], retention_ratio=job["retention"])
setup = Setup(model=job["model"], data=job["data"], frames=job["frames"], max_new_tokens=job["new_tokens"])
session = open_session(setup, default())
found = [
    {"id": one.example_id, "correct": one.correct, "prediction": one.prediction, "retention": one.retention_ratio}
    for one in session.bench.score(policy, session.task.all)  # type: ignore[attr-defined]
]
Path(job["out"]).write_text(json.dumps(found))
