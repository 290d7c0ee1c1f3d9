"""Train a bundled model: python scripts/train_bundled.py --family qwen2-vl --folder runs/qwen2-vl

About an hour a model on one quiet core. Interrupt it when you like; the same command goes on from the last
checkpoint. `OMP_WAIT_POLICY=PASSIVE` helps where the cores are shared.
"""

import argparse
from pathlib import Path

import torch

from vidsieve.bundled.train.training_run import Run


def main() -> None:
    """Both stages, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--family", choices=["qwen2-vl", "llava-onevision"], required=True)
    parser.add_argument("--folder", type=Path, required=True, help="log and checkpoints")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vision-steps", type=int, default=1800)
    parser.add_argument("--language-steps", type=int, default=3500)
    parser.add_argument("--watch-every", type=int, default=500, help="steps between evaluations in the log")
    parser.add_argument("--package", type=Path, help="write the finished checkpoint folder here")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    run = Run(chosen.family, chosen.folder, seed=chosen.seed)
    run.vision(chosen.vision_steps)
    run.language(chosen.language_steps, watch_every=chosen.watch_every)
    if chosen.package:
        run.package(chosen.package)


if __name__ == "__main__":
    main()
