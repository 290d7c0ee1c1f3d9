"""What transformers answers under each policy, one prompt at a time: `python truth.py JOB.json`."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from prompts import NEW_TOKENS, Asked, metadata, prompts
from vllm_models import checkpoint

from vidsieve import applied, load_policy


def main() -> None:
    """Read the job, answer, write."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    place = tempfile.TemporaryDirectory()
    folder = checkpoint(job["model"], Path(place.name) / job["model"])
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, name).from_pretrained(folder).eval()
    model.generation_config.eos_token_id = None
    processor = transformers.AutoProcessor.from_pretrained(folder)
    asked = prompts(job["model"], job["frames"], job["count"])
    found = {}
    for label, file in job["policies"].items():
        chosen = load_policy(file)
        found[label] = [_answer(model, processor, chosen, one) for one in asked]
    Path(job["out"]).write_text(json.dumps(found))


def _answer(model: Any, processor: Any, policy: Any, asked: Asked) -> dict[str, Any]:
    """Greedy tokens with their log-probabilities."""
    inputs = processor(
        text=[asked.text],
        images=asked.images or None,
        videos=asked.videos,
        video_metadata=[
            {k: v for k, v in metadata(video).items() if k != "do_sample_frames"} for video in asked.videos
        ],
        do_sample_frames=False,
        return_tensors="pt",
    )
    with applied(model, policy):
        output = model.generate(
            **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, return_dict_in_generate=True, output_scores=True
        )
    new = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    steps = zip(output.scores, new, strict=True)
    return {"kind": asked.kind, "ids": new, "logp": [float(score[0].log_softmax(-1)[token]) for score, token in steps]}


if __name__ == "__main__":
    main()
