"""Train a bundled model: python scripts/train_bundled.py --model qwen2-vl-mini --out runs/qwen2-vl-mini

A tiny model takes about an hour on one quiet core, a mini model about four. Interrupt it when you like; the same
command goes on from the last checkpoint in the folder. `OMP_WAIT_POLICY=PASSIVE` helps where the cores are shared.
"""

import argparse
from pathlib import Path

import torch

from vidsieve.bundled.shapes import SHAPES, TINY, shape_of
from vidsieve.bundled.train.long_run import LongRun
from vidsieve.bundled.train.training_run import Run


def main() -> None:
    """Both stages, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[shape.name for shape in SHAPES], required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the log and the checkpoints")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vision-steps", type=int, help="default: tiny 1800, mini 900")
    parser.add_argument("--language-steps", type=int, help="default: tiny 3500, mini 6000")
    parser.add_argument("--watch-every", type=int, default=500, help="steps between evaluations in the log")
    parser.add_argument("--commit", action="store_true", help="only store the folder's last weights beside the trainer")
    parser.add_argument("--package", type=Path, help="write the finished checkpoint folder here")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    shape = shape_of(chosen.model)
    tiny = shape.groups == TINY.groups
    run = (Run if tiny else LongRun)(shape, chosen.out, seed=chosen.seed)
    if chosen.commit:
        assert isinstance(run, LongRun), "only mini models have a checkpoint to commit"
        print(run.commit())
        return
    run.vision(chosen.vision_steps or (1800 if tiny else 900))
    run.language(chosen.language_steps or (3500 if tiny else 6000), watch_every=chosen.watch_every)
    if chosen.package:
        run.package(chosen.package)


if __name__ == "__main__":
    main()
