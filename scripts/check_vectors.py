"""Compare the built-in policies with recorded outputs of official code: VidCom², DyCoke, FastV, PyramidDrop, SparseVLM.

    python scripts/check_vectors.py FOLDER

FOLDER holds a json and an npz file of vidcom2, dycoke and in-llm in the format of tests/data/vectors/README.md.
Inputs are drawn again from the seeds in the JSON files; those with a recorded hash are checked by it. Kept sets must
match exactly.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.policy.file import load_policy
from vidsieve.framework.policy.policy import Policy
from vidsieve.policies.vidcom2 import measure, steady_channels
from vidsieve.testing import select_kv

Arrays = Mapping[str, np.ndarray]
SCORE_TOLERANCE = 5e-6
"""Largest difference of likeness to the official float32 scores, which lie in (0, 5]."""


class Check(NamedTuple):
    """One comparison; `faults()` says what differs, and is empty when all agrees."""

    name: str
    faults: Callable[[], list[str]]


def checks(folder: Path) -> Iterator[Check]:
    """Every comparison that the files in `folder` allow."""
    vidcom2, arrays = _read(folder, "vidcom2")
    for case in vidcom2["cases"]:
        yield Check(f"vidcom2 {case['id']}", partial(vidcom2_case, case, vidcom2["kinds"], arrays))
    for case in vidcom2["qwen_adapters"]:
        if f"{case['id']}/kept_video" in arrays:
            yield Check(f"vidcom2 {case['id']}", partial(vidcom2_videos, case, vidcom2["kinds"], arrays))
    dycoke, arrays = _read(folder, "dycoke")
    for case in dycoke["ttm"]:
        yield Check(f"dycoke {case['name']}", partial(dycoke_merge, case, arrays))
    for case in dycoke["kv"]:
        yield Check(f"dycoke {case['name']}", partial(dycoke_kv, case, arrays, "attn"))
    for case in dycoke["e2e"]:
        yield Check(f"dycoke {case['name']}", partial(dycoke_kv, case, arrays, "attn_avg"))
    if str(Path(__file__).parent) not in sys.path:
        sys.path.append(str(Path(__file__).parent))
    from in_llm_vectors import in_llm_checks

    for name, faults in in_llm_checks(*_read(folder, "in-llm")):
        yield Check(name, faults)


def _read(folder: Path, name: str) -> tuple[dict[str, Any], Arrays]:
    with np.load(folder / f"{name}.npz") as file:
        return json.loads((folder / f"{name}.json").read_text()), dict(file)


# ---------------------------------------------------------------------------------------------------- VidCom²


def vidcom2_input(seed: int, frames: int, tokens: int, dim: int, amplitudes: list[float], static: bool) -> np.ndarray:
    """Correlated frames with one or two unusual ones, float32 (frames, tokens, dim)."""
    a_off, a_scene, a_drift, a_noise, a_uoff, a_uscene = amplitudes
    rng = np.random.default_rng(seed)
    offset, chan = rng.standard_normal(dim), 0.25 + 1.75 * rng.random(dim)
    scene, drift = rng.standard_normal((tokens, dim)), rng.standard_normal((frames, dim))
    noise = rng.standard_normal((frames, tokens, dim))
    uoff, uscene = rng.standard_normal((2, dim)), rng.standard_normal((2, tokens, dim))
    x = ((a_off * offset + a_scene * scene)[None] + a_drift * drift[:, None]) + a_noise * noise
    unusual = [] if static or frames < 2 else [frames // 2] if frames < 8 else [frames // 4, 3 * frames // 4]
    for j, t in enumerate(unusual):
        x[t] = ((a_off * offset + a_uoff * uoff[j]) + a_uscene * uscene[j]) + a_noise * noise[t]
    return (x * chan).astype(np.float32)


def vidcom2_case(case: dict[str, Any], kinds: dict[str, list[float]], arrays: Arrays) -> list[str]:
    """Kept sets, counts, channels and likeness of one video."""
    name, group, kind = case["id"], case["group"], case["kind"]
    x = vidcom2_input(case["seed"], case["T"], case["M"], case["D"], kinds[kind], kind == "static")
    if "zero_tokens" in group:
        x[1, :5] = 0
    if fault := _wrong_input(x, case["input_sha256"]):
        return fault
    features = torch.from_numpy(x)
    plan = load_policy("vidcom2-released", retention_ratio=case["R"]).plan(features)
    faults = _differs("kept", arrays[f"{name}/kept"], plan.index.numpy())
    faults += _differs("count per frame", arrays[f"{name}/k"], plan.keep.sum(dim=1).numpy())
    mass = torch.ones(*x.shape[:2], 1)
    channels = arrays.get(f"{group}/channels")
    if channels is not None and channels.size:
        faults += _differs("channels", channels, steady_channels(features, mass.squeeze(-1) > 0, mass, 0.5).numpy())
    found = measure(features, plan.keep | True, mass.squeeze(-1), 0.5)
    for key, ours in (("v", found.video), ("f", found.frame)):
        if f"{group}/{key}" in arrays:
            furthest = float(np.abs(arrays[f"{group}/{key}"] - ours.numpy()).max())
            faults += [f"{key} is off by {furthest:.2g}"] if not furthest <= SCORE_TOLERANCE else []
    return faults


def vidcom2_videos(case: dict[str, Any], kinds: dict[str, list[float]], arrays: Arrays) -> list[str]:
    """Kept rows of the concatenated videos of one request, each video planned alone."""
    policy = load_policy("vidcom2-released", retention_ratio=case["R"])
    kept, offset = [], 0
    for seed, (t, h, w) in zip(case["seeds"], case["vids_merged_thw"], strict=True):
        x = vidcom2_input(seed, t, h * w, case["D"], kinds[case["kind"]], False)
        kept.append(policy.plan(torch.from_numpy(x), token_grid=(t, h, w)).index.numpy() + offset)
        offset += t * h * w
    return _differs("kept", arrays[f"{case['id']}/kept_video"], np.concatenate(kept))


# ---------------------------------------------------------------------------------------------------- DyCoke


def dycoke_input(case: dict[str, Any]) -> np.ndarray:
    """A chain of frames, each correlated with the one before, float32 (frames, tokens, dim)."""
    gen = {"lo": 0.2, "hi": 0.99, "cuts": (), "shift": 0} | case.get("gen", {})
    frames, tokens, dim = case["frames"], case["tokens"], case["dim"]
    rng = np.random.default_rng(case["seed"])
    mean = rng.standard_normal((1, dim))
    x = [rng.standard_normal((tokens, dim))]
    for frame in range(1, frames):
        a = rng.uniform(gen["lo"], gen["hi"], (tokens, 1))
        e = rng.standard_normal((tokens, dim))
        a = np.zeros_like(a) if frame in gen["cuts"] else a
        x.append(a * x[-1] + np.sqrt(1 - a * a) * e)
    return (np.stack(x) + gen["shift"] * mean).astype(np.float32)


def dycoke_merge(case: dict[str, Any], arrays: Arrays) -> list[str]:
    """Kept sets of the token stage; the order of rows inside a frame is ours (ascending), not the official one."""
    x = dycoke_input(case)
    if fault := _wrong_input(x, case["input_sha256"]):
        return fault
    released = case["variant"] == "upstream"
    policy = load_policy(
        "dycoke-released" if released else "dycoke", settings={"dycoke.temporal-merge.drop_ratio": float(case["K"])}
    )
    if "error" in case:
        return _must_refuse(policy, x, case["error"])
    kept = policy.plan(torch.from_numpy(x)).index.numpy()
    if not released and case["frames"] % 2:
        # the recorded variant mends the last window only: it still loses an odd last frame, which ours keeps
        kept = kept[kept < (case["frames"] - 1) * case["tokens"]]
    return _differs("kept", np.sort(arrays[f"{case['name']}/kept_idx"]), kept)


def _must_refuse(policy: Policy, x: np.ndarray, official: str) -> list[str]:
    """The official code fails here; ours must say so and name that failure."""
    try:
        policy.plan(torch.from_numpy(x))
    except PolicyError as error:
        named = "stack expects a non-empty TensorList" in str(error)
        return [] if named else [f"the refusal does not name the official failure: {error}"]
    return [f"accepted, but the official code fails: {official}"]


def dycoke_kv(case: dict[str, Any], arrays: Arrays, rows: str) -> list[str]:
    """KV entries read in each decode step of one request; a step that is not pruned reads everything."""
    policy = load_policy("dycoke-released", settings={"dycoke.kv.drop_ratio": float(case["P"])})
    stage = policy.kv_stages[0].stage
    faults, state, step = [], None, 0
    while (name := f"{case['name']}/step{step}/{rows}") in arrays:
        attention = torch.from_numpy(np.atleast_2d(arrays[name]))
        ours, state = select_kv(stage, attention, (case["start"], case["n_vis"]), state)
        everything = np.arange(attention.shape[1])
        official = arrays.get(f"{case['name']}/step{step}/kv_sorted", everything)
        faults += _differs(f"step {step}", official, ours.numpy())
        step += 1
    return faults if step else ["no attention recorded"]


# ---------------------------------------------------------------------------------------------------- comparing


def _wrong_input(x: np.ndarray, sha256: str) -> list[str]:
    """A fault if the input drawn here is not the recorded one (another numpy may draw other numbers)."""
    same = hashlib.sha256(np.ascontiguousarray(x, dtype="<f4").tobytes()).hexdigest() == sha256
    return [] if same else [f"the input drawn with numpy {np.__version__} has another hash than the recorded one"]


def _differs(what: str, official: np.ndarray, ours: np.ndarray) -> list[str]:
    """A fault if two integer arrays are not the same."""
    if np.array_equal(official, ours):
        return []
    missing, extra = np.setdiff1d(official, ours), np.setdiff1d(ours, official)
    return [f"{what}: {len(official)} official, {len(ours)} ours; missing {missing[:8]}, extra {extra[:8]}"]


def main(arguments: list[str] | None = None) -> int:
    """Run every check, print what differs, return 1 if anything does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the json and npz files are")
    folder = parser.parse_args(arguments).folder
    failed = total = 0
    for check in checks(folder):
        total += 1
        if faults := check.faults():
            failed += 1
            print(f"DIFFERS  {check.name}: {'; '.join(faults)}")
    print(f"{total - failed} of {total} cases agree with the official code.")
    return 1 if failed or not total else 0


if __name__ == "__main__":
    sys.exit(main())
