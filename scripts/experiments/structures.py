"""Which way to look for compositions finds more in few trials? A simulation over the grammar of the built-in stages.

    python scripts/experiments/structures.py --seeds 12

Landscapes are made up: each stage has a worth, each pair of stages in one composition another, and each stage beyond
the first costs a point; what is measured has an error of a point. The published policies that a search takes by itself
are measured first, as they are there. Printed is what the best pick is truly worth beyond the best of them, in points,
after 12, 24 and 48 compositions. No model is run: this compares ways to choose, and says nothing of methods.
"""

import argparse
import itertools
import warnings
from collections.abc import Callable
from functools import cache
from statistics import mean, stdev

import numpy as np
import optuna

from vidsieve.framework.policy.file import load_policy
from vidsieve.framework.registry import default
from vidsieve.tuner.search.structure import Observation, draw
from vidsieve.tuner.space.composed_space import ComposedSpace
from vidsieve.tuner.space.grammar import Grammar, Skeleton
from vidsieve.tuner.space.policy_catalog import split_published

ERROR = 1.0
COST = 1.0
TRIALS = (12, 24, 48)
LANDSCAPES = ((3.0, 1.5), (2.0, 3.0), (1.0, 3.0), (1.0, 1.0))
"""How far the worth of stages, and of pairs, scatters."""
Seen = dict[Skeleton, float]


@cache
def grammar() -> Grammar:
    """All compositions of built-in stages before decode, published ones included."""
    return Grammar(default().stages, decode=False)


@cache
def published() -> tuple[Skeleton, ...]:
    """The published policies that a search takes by itself."""
    searched, _, _ = split_published(load_policy(name) for name in sorted(default().policies))
    known = ([b.use for b in policy.stages if b.use in grammar().stages] for policy in searched)
    return tuple(found for uses in known if (found := grammar().skeleton(uses)) is not None)


@cache
def everything() -> tuple[Skeleton, ...]:
    """Every composition."""
    return tuple(grammar().skeletons())


def landscape(seed: int, alone: float, together: float) -> Callable[[Skeleton], float]:
    """What each composition is truly worth, in points."""
    names = list(grammar().stages)
    rng = np.random.default_rng(seed)
    worth = dict(zip(names, rng.normal(0, alone, len(names)), strict=True))
    pairs = {frozenset(pair): rng.normal(0, together) for pair in itertools.combinations(names, 2)}

    def value(skeleton: Skeleton) -> float:
        here = [name for name in skeleton if name is not None]
        joint = sum(pairs[frozenset(pair)] for pair in itertools.combinations(here, 2))
        return float(sum(worth[name] for name in here) + joint - COST * (len(here) - 1))

    return value


def by_chance(seen: Seen, rng: np.random.Generator) -> Skeleton:
    """Any composition."""
    return everything()[rng.integers(len(everything()))]


def beside_the_best(seen: Seen, rng: np.random.Generator) -> Skeleton:
    """The best so far with one part exchanged, put in or left out."""
    best = max(seen, key=lambda each: seen[each])
    fresh = [each for each in everything() if each not in seen]
    near = [each for each in fresh if sum(a != b for a, b in zip(each, best, strict=True)) == 1]
    return near[rng.integers(len(near))] if near else by_chance(seen, rng)


def by_stages(seen: Seen, rng: np.random.Generator) -> Skeleton:
    """As the tuner does."""
    told = [Observation(tuple(name for name in each if name), value) for each, value in seen.items()]
    return draw(grammar(), told, seen, rng) or by_chance(seen, rng)


WAYS = {
    "by chance": by_chance,
    "the best with one part changed": beside_the_best,
    "worth of stages, drawn (the tuner's)": by_stages,
}
PART_BY_PART = "TPE, part by part"


def gain(way: str, seed: int, trials: int, alone: float, together: float) -> float:
    """What the best pick is worth beyond the best published policy."""
    value, rng = landscape(seed, alone, together), np.random.default_rng([seed, 1])

    def measure(skeleton: Skeleton) -> float:
        return value(skeleton) + float(rng.normal(0, ERROR))

    seen = {each: measure(each) for each in published()}
    if way == PART_BY_PART:
        _part_by_part(seen, trials, seed, measure)
    else:
        for _ in range(trials):
            skeleton = WAYS[way](seen, rng)
            seen.setdefault(skeleton, measure(skeleton))
    return value(max(seen, key=lambda each: seen[each])) - max(map(value, published()))


def _part_by_part(seen: Seen, trials: int, seed: int, measure: Callable[[Skeleton], float]) -> None:
    """Let Optuna's sampler choose each part, with the settings that the tuner has."""
    space = ComposedSpace(grammar(), (0.25, 0.25), solved=True)
    sampler = optuna.samplers.TPESampler(multivariate=True, group=True, seed=seed)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    for _ in range(trials):
        trial = study.ask()
        skeleton = space._choose(lambda name, choices, part, trial=trial: trial.suggest_categorical(name, choices))
        study.tell(trial, seen.setdefault(skeleton, measure(skeleton)))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=12)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"{len(everything()):,} compositions, {args.seeds} landscapes of each kind\n")
    print("| stages, pairs scatter by | way | " + " | ".join(f"{trials} trials" for trials in TRIALS) + " |")
    print("|---|---|" + "---|" * len(TRIALS))
    for alone, together in LANDSCAPES:
        for way in (*WAYS, PART_BY_PART):
            cells = []
            for trials in TRIALS:
                gains = [gain(way, seed, trials, alone, together) for seed in range(args.seeds)]
                cells.append(f"{mean(gains):+.1f} ± {stdev(gains) / len(gains) ** 0.5:.1f}")
            print(f"| {alone:g}, {together:g} | {way} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
