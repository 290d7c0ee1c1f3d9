"""Print what planning adds to the memory at 64 to 512 frames, in copies of the video's features.

    python scripts/planning_memory.py                      the policies that choose among features
    python scripts/planning_memory.py --policies vidcom2   some of them

Features of 196 tokens a frame, 512 wide, without a model. Counted as the system counts resident memory, its high-water
mark over the plan; what is kept in the end is within it.
"""

import argparse
import sys

import torch

from vidsieve import load_policy
from vidsieve.framework import registry
from vidsieve.harness.benchmark.memory_meter import open_meter
from vidsieve.testing.samples import video_features

FRAMES, TOKENS, WIDTH = (64, 128, 256, 512), 196, 512
DTYPES = (torch.float32, torch.bfloat16)
USUAL = "vidcom2,dycoke,random,uniform-frames"


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", default=USUAL, help="comma-separated")
    names = parser.parse_args().policies.split(",")
    if unknown := set(names) - set(registry.default().policies):
        parser.error(f"--policies: no published policy {', '.join(sorted(unknown))}")
    meter = open_meter(torch.device("cpu"))
    if meter is None:
        parser.error("this system tells no resident memory")
    print("| policy | dtype | " + " | ".join(f"{frames} frames" for frames in FRAMES) + " |")
    print("|---|---|" + "---|" * len(FRAMES))
    for dtype in DTYPES:
        videos = [video_features(frames, TOKENS, WIDTH).to(dtype) for frames in FRAMES]
        for name in names:
            policy, cells = load_policy(name), []
            policy.plan(videos[0][:8])  # what is made once
            for video in videos:
                meter.trim()
                meter.restart()
                held = meter.held_bytes()
                policy.plan(video)
                cells.append(f"{(meter.peak_bytes() - held) / video.nbytes:.2f}")
            print(f"| {name} | {str(dtype).removeprefix('torch.')} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
