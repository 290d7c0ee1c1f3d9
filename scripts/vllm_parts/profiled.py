"""Whether vLLM gets through its memory profiling at the start: `python profiled.py JOB.json`.

vLLM's CPU build leaves it out, so it is called by hand. The prompt is so short that the made-up video is, too.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from vllm_models import servable


def main() -> None:
    """Read the job, start under its policy, profile, write the shapes that the encoder gave and its budget."""
    from vllm import LLM

    job = json.loads(Path(sys.argv[1]).read_text())
    os.environ["VIDSIEVE_POLICY"] = job["policy"]
    with tempfile.TemporaryDirectory() as folder:
        llm = LLM(
            model=str(servable(job["model"], Path(folder) / job["model"])),
            dtype="float32",
            enforce_eager=True,
            block_size=32,
            max_model_len=256,
            limit_mm_per_prompt={"video": 1, "image": 0},
            max_num_batched_tokens=256,
            max_num_seqs=2,
            disable_log_stats=True,
        )
    runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
    embed, rows = runner.model.embed_multimodal, []

    def watched(**inputs: Any) -> Any:
        found = embed(**inputs)
        rows.extend(list(part.shape) for part in found)
        return found

    runner.model.embed_multimodal = watched
    runner.profile_run()
    Path(job["out"]).write_text(json.dumps({"rows": rows, "budget": runner.mm_budget.get_encoder_budget()}))


if __name__ == "__main__":
    main()
