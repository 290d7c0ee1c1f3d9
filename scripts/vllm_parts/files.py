"""The policy files that both sides read, and why some are not served: `python files.py JOB.json`."""

import json
import sys
from pathlib import Path

from vllm_models import architecture

from vidsieve import load_policy
from vidsieve.integrations.vllm.served_policy import reasons_against
from vidsieve.integrations.vllm.vllm_internals import MODELS

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Read the job, write a file for each policy and tell the reasons against it."""
    job = json.loads(Path(sys.argv[1]).read_text())
    served, found = MODELS[architecture(job["model"])], {}
    for name, ratio in job["policies"]:
        given = HERE / f"{name}.yaml"
        policy = load_policy(
            str(given) if given.exists() else name, retention_ratio=ratio, settings={"positions": job["positions"]}
        )
        file = Path(job["folder"]) / f"{name}-{ratio}.yaml"
        file.write_text(policy.to_yaml())
        reasons = reasons_against(policy, positions=served.positions, frames=served.frames)
        found[f"{name} {ratio}"] = {"file": str(file), "reasons": reasons}
    Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
