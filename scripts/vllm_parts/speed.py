"""How long vLLM takes: `python speed.py JOB.json`, with the policy in the environment, or none."""

import json
import sys
import tempfile
import time
from pathlib import Path

from prompts import KINDS, prompts
from served import request
from vllm_models import servable


def main() -> None:
    """First tokens one request after another, then all requests at once; milliseconds and requests a second."""
    from vllm import LLM, SamplingParams

    job = json.loads(Path(sys.argv[1]).read_text())
    with tempfile.TemporaryDirectory() as folder:
        llm = LLM(
            model=str(servable(job["model"], Path(folder) / job["model"])),
            dtype="float32",
            enforce_eager=True,
            skip_mm_profiling=True,
            block_size=32,
            max_model_len=4096,
            max_num_batched_tokens=8192,
            max_num_seqs=8,
            # a video that was seen before must cost as much as a new one
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,
            disable_log_stats=True,
        )
    asked = [request(one) for one in prompts(job["model"], job["frames"], job["count"]) if one.kind == KINDS[0]]
    first, answer = SamplingParams(max_tokens=1, temperature=0), SamplingParams(max_tokens=4, temperature=0)
    llm.generate(asked[:1], answer, use_tqdm=False)
    ttft_ms = []
    for one in asked:
        start = time.perf_counter()
        llm.generate([one], first, use_tqdm=False)
        ttft_ms.append(1000 * (time.perf_counter() - start))
    start = time.perf_counter()
    llm.generate(asked, answer, use_tqdm=False)
    per_second = len(asked) / (time.perf_counter() - start)
    Path(job["out"]).write_text(json.dumps({"ttft_ms": ttft_ms, "per_second": per_second}))


if __name__ == "__main__":
    main()
