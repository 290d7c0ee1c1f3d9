"""Count what four everyday jobs touch of the package: functions, files, and calls that go from one file to another.

    python scripts/count_moves.py            # the tree that `import vidsieve` finds
    PYTHONPATH=../other python scripts/count_moves.py   # another checkout, for before and after

The short jobs, generate and plan, run once unobserved, so that imports and memos are paid. Then each runs under
`sys.setprofile`. Threads that the package starts are counted; calls inside other libraries are not. A *move* is a call
whose caller, the nearest function of the package below it on the stack, is in another file.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vidsieve

ROOT = str(Path(vidsieve.__file__).parent)
QUESTION = "what happens first?"


class Counter:
    """Functions, files and moves between files, seen while open."""

    def __init__(self) -> None:
        self.functions: set[Any] = set()
        self.calls = 0
        self.moves = 0

    def _observe(self, frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(ROOT) or code.co_name == "<module>":
            return
        self.calls += 1
        self.functions.add(code)
        below = frame.f_back
        while below is not None and not below.f_code.co_filename.startswith(ROOT):
            below = below.f_back
        if below is not None and below.f_code.co_filename != code.co_filename:
            self.moves += 1

    def __enter__(self) -> "Counter":
        threading.setprofile(self._observe)
        sys.setprofile(self._observe)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def row(self) -> dict[str, int]:
        """The counts."""
        files = {code.co_filename for code in self.functions}
        return {"functions": len(self.functions), "files": len(files), "calls": self.calls, "moves": self.moves}


def model_and_inputs() -> tuple[Any, dict[str, Any]]:
    """The bundled Qwen2-VL model with a prompt of eight frames of noise."""
    import torch
    from transformers import Qwen2VLForConditionalGeneration

    model = Qwen2VLForConditionalGeneration.from_pretrained(f"{ROOT}/bundled/models/qwen2-vl-tiny").eval()
    config, vision = model.config, model.config.vision_config
    time, height, width = 4, 8, 8
    tokens = time * height * width // vision.spatial_merge_size**2
    text = torch.arange(1, 5)
    inside = torch.full((tokens,), config.video_token_id)
    ends = torch.tensor([config.vision_start_token_id]), torch.tensor([config.vision_end_token_id])
    ids = torch.cat([text, ends[0], inside, ends[1], text])[None]
    depth = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    noise = torch.randn(time * height * width, depth, generator=torch.Generator().manual_seed(0))
    grid = torch.tensor([[time, height, width]])
    kinds = (ids == config.video_token_id).int() * 2
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": noise}
    return model, inputs | {"video_grid_thw": grid, "mm_token_type_ids": kinds}


def write_clip(path: Path) -> None:
    """Two seconds of a moving square."""
    import av
    import numpy

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 96
        for index in range(16):
            picture = numpy.zeros((96, 96, 3), numpy.uint8)
            picture[4 * index : 4 * index + 16, 20:36] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())


def jobs(folder: Path) -> dict[str, Callable[[], object]]:
    """The four jobs by name."""
    import torch

    from vidsieve import Policy, applied, load_policy
    from vidsieve.cli import main

    model, inputs = model_and_inputs()
    policy: Policy = load_policy("vidcom2").with_(retention_ratio=0.25)
    clip = folder / "clip.mp4"
    write_clip(clip)
    noise = torch.randn(8, 36, 64, generator=torch.Generator().manual_seed(0))

    def generate() -> None:
        with applied(model, policy):
            model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)

    def plan() -> None:
        policy.plan(noise, token_grid=(8, 6, 6))

    def tune() -> None:
        vidsieve.tune("qwen2-vl-tiny", latency_ms=200, trials=2, examples=8, policies=["vidcom2"], in_process=True)

    def run() -> None:
        arguments = ["vidsieve", "run", "--model", "qwen2-vl-tiny", "--policy", "vidcom2", str(clip), QUESTION]
        kept, sys.argv = sys.argv, arguments
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"vidsieve run ended with {end.code}") from None
        finally:
            sys.argv = kept

    return {"generate": generate, "plan": plan, "tune": tune, "run": run}


def main() -> None:
    """Print one row a job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    asked = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, job in jobs(Path(folder)).items():
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                if name in ("generate", "plan"):
                    job()
                with Counter() as counter:
                    job()
            rows[name] = counter.row()
    if asked.json:
        print(json.dumps(rows, indent=2))
        return
    print("| job | functions | files | calls | moves |\n|---|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(str(value) for value in row.values())} |")


if __name__ == "__main__":
    main()
