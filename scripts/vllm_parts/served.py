"""What vLLM answers to the same prompts: `python served.py JOB.json`."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prompts import NEW_TOKENS, Asked, metadata, prompts
from vllm_models import servable

from vidsieve.integrations.vllm import plugin


def main() -> None:
    """Read the job, serve one policy after another in one engine, answer in every way, write."""
    from vllm import LLM

    job = json.loads(Path(sys.argv[1]).read_text())
    folder = tempfile.TemporaryDirectory()
    _take(next(iter(job["policies"].values())))
    llm = LLM(
        model=str(servable(job["model"], Path(folder.name) / job["model"])),
        dtype="float32",
        enforce_eager=True,
        skip_mm_profiling=True,
        block_size=32,
        max_model_len=4096,
        limit_mm_per_prompt={"video": 2, "image": 1},
        max_num_batched_tokens=8192,
        max_num_seqs=8,
        disable_log_stats=True,
    )
    asked = prompts(job["model"], job["frames"], job["count"])
    found: dict[str, dict[str, Any]] = {}
    for label, file in job["policies"].items():
        # the caches of the policy before stay: they must not be mixed up
        _take(file)
        ways = found[label] = {"one by one": [_answer(llm, [one])[0] for one in asked]}
        ways["prefix cached"] = [_answer(llm, [one])[0] for one in asked]
        llm.reset_prefix_cache()
        ways["batched"] = _answer(llm, asked)
        llm.reset_prefix_cache()
        with _chunks(llm, job["chunk_tokens"]):
            ways["chunked"] = [_answer(llm, [one])[0] for one in asked]
    Path(job["out"]).write_text(json.dumps(found))


def _take(file: str) -> None:
    """Serve this policy from now on."""
    os.environ["VIDSIEVE_POLICY"] = file
    plugin._served.cache_clear()


@contextmanager
def _chunks(llm: Any, tokens: int) -> Iterator[None]:
    """While open, prompts are read so many tokens at a time."""
    rules = llm.llm_engine.engine_core.engine_core.scheduler.scheduler_config
    before, rules.long_prefill_token_threshold = rules.long_prefill_token_threshold, tokens
    yield
    rules.long_prefill_token_threshold = before


def _answer(llm: Any, asked: list[Asked]) -> list[dict[str, Any]]:
    """Greedy tokens with their log-probabilities, of a batch."""
    from vllm import SamplingParams

    rules = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, logprobs=1, ignore_eos=True)
    outputs = llm.generate([request(one) for one in asked], rules, use_tqdm=False)
    return [
        {
            "kind": one.kind,
            "ids": list(output.outputs[0].token_ids),
            "logp": [
                step[token].logprob
                for step, token in zip(output.outputs[0].logprobs, output.outputs[0].token_ids, strict=True)
            ],
            "prompt": len(output.prompt_token_ids),
            "cached": output.num_cached_tokens or 0,
        }
        for one, output in zip(asked, outputs, strict=True)
    ]


def request(asked: Asked) -> dict[str, Any]:
    """The prompt and its pictures as `LLM.generate` takes them."""
    media: dict[str, Any] = {
        "video": [(video, metadata(video) | {"do_sample_frames": False}) for video in asked.videos]
    }
    if asked.images:
        from PIL import Image

        media["image"] = [Image.fromarray(image) for image in asked.images]
    return {"prompt": asked.text, "multi_modal_data": media}


if __name__ == "__main__":
    main()
