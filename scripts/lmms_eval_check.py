"""Run lmms-eval with the model `vidsieve` on a local task, and `vidsieve eval` on the same examples, side by side.

    python scripts/lmms_eval_check.py                  both tasks, all policies; some six minutes of one core
    python scripts/lmms_eval_check.py --policies vidcom2:0.25 --write

lmms-eval runs unchanged and offline, in an environment of its own, made on first use in --env. The tasks are in its own
format, on clips of the bundled task: one has the answer written (`generate_until`), one has options scored
(`multiple_choice`). Every example is compared. `--write` stores what is printed in scripts/data/lmms_eval_check.md.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PART = ROOT / "scripts" / "lmms_parts" / "outcomes.py"
LOG = ROOT / "scripts" / "data" / "lmms_eval_check.md"
LMMS, TORCH = ("lmms-eval==0.7.3", "filelock<4"), "torch==2.13.0"
MODEL, FRAMES, NEW_TOKENS, PER_CLIP = "qwen2-vl-tiny", 16, 4, 9
POLICIES = (("none", None), ("vidcom2", 0.25), ("random", 0.1), ("fastv", 0.5))
WRITTEN, OPTIONS = "clips_written", "clips_options"
STUB = """import torch

_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
"""torchvision's wheel is built for CUDA; beside a CPU build of torch it imports once these operators have a name."""
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
UTILS = """def doc_to_visual(doc):
    return [doc["video"]]


def doc_to_text(doc):
    return doc["question"]
"""
COMMON = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
"""
TASKS = {
    WRITTEN: """output_type: generate_until
doc_to_target: answer
generation_kwargs: {{max_new_tokens: {new_tokens}, temperature: 0, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true, ignore_punctuation: true}}
""",
    OPTIONS: """output_type: multiple_choice
doc_to_choice: options
doc_to_target: "{{{{options.index(answer)}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
""",
}
TWO_PROCESSES = ["accelerate.commands.launch", "--cpu", "--num_processes", "2"]
METRICS = {WRITTEN: "exact_match", OPTIONS: "acc"}


def environment(folder: Path) -> Path:
    """The interpreter of lmms-eval's environment, which is made where there is none."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        install = [str(python), "-m", "pip", "install", "-q"]
        subprocess.run([*install, TORCH], check=True)
        subprocess.run([*install, *LMMS, TORCH], check=True)
        subprocess.run([*install, "-e", str(ROOT), *LMMS, TORCH, tested("transformers")], check=True)
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    (packages / "torchvision_operators.py").write_text(STUB)
    (packages / "torchvision_operators.pth").write_text("import torchvision_operators\n")
    return python


def tested(package: str) -> str:
    """The release of a package that constraints.txt holds."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"{package}=="))


def run(command: list[str], folder: Path) -> str:
    """Run a command of that environment and return what it printed. Raises RuntimeError with the end of it."""
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("VIDSIEVE_")}
    surroundings |= SETTINGS | {"HF_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=surroundings, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}:\n{(done.stderr + done.stdout)[-3000:]}")
    return done.stdout


def write_tasks(python: Path, folder: Path, clips: int, model: str) -> None:
    """Write clips with their questions, for both programs, and lmms-eval's tasks about them."""
    code = (
        "import sys; from pathlib import Path; from vidsieve import BundledTask, write_dataset, write_video; "
        "from vidsieve.bundled.shapes import shape_of; "
        "write_dataset(BundledTask(shape=shape_of(sys.argv[2])), 'heldout', int(sys.argv[1]), Path('.'), "
        "write_video=write_video)"
    )
    run([str(python), "-c", code, str(clips * PER_CLIP), model], folder)
    rows = [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]
    (folder / f"{OPTIONS}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    opened = [{name: value for name, value in row.items() if name != "options"} for row in rows]
    (folder / f"{WRITTEN}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in opened))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "utils.py").write_text(UTILS)
    for name, text in TASKS.items():
        data = folder / "tasks" / f"{name}.jsonl"
        files = [{**row, "video": str(folder / row["video"])} for row in rows]
        data.write_text("".join(f"{json.dumps(row)}\n" for row in files))
        (folder / "tasks" / f"{name}.yaml").write_text(
            (COMMON + text).format(name=name, data=data, new_tokens=NEW_TOKENS)
        )


class Check:
    """One model on one folder of clips."""

    def __init__(self, python: Path, folder: Path, model: str) -> None:
        self.python, self.folder, self.model = python, folder, model
        self.lines: list[str] = []
        self.differing = 0

    def compare(self, policy: str, ratio: float | None) -> None:
        """Compare one policy; a line for each way of running lmms-eval."""
        truth = {task: self._own(task, policy, ratio) for task in TASKS}
        for way, batch, tasks, options, launcher in (
            ("chat form, batches of 1", 1, [WRITTEN], [], []),
            ("simple form, batches of 4", 4, [WRITTEN, OPTIONS], ["--force_simple"], []),
            (
                "chat form, two processes",
                1,
                [WRITTEN],
                [],
                ["accelerate.commands.launch", "--cpu", "--num_processes", "2"],
            ),
        ):
            found, results, command = self._lmms(tasks, policy, ratio, batch, options, launcher)
            for task in tasks:
                self._line(task, way, policy, ratio, truth[task], found[task], results, command)

    def _own(self, task: str, policy: str, ratio: float | None) -> dict[str, Any]:
        """What `vidsieve eval` prints, and the outcomes that its number is the mean of."""
        job = {
            **{"model": self.model, "data": str(self.folder / f"{task}.jsonl"), "frames": FRAMES},
            **{"policy": None if policy == "none" else policy, "retention": ratio, "new_tokens": NEW_TOKENS},
            "out": str(self.folder / "outcomes.json"),
        }
        (self.folder / "job.json").write_text(json.dumps(job))
        run([str(self.python), str(PART), str(self.folder / "job.json")], self.folder)
        outcomes = json.loads((self.folder / "outcomes.json").read_text())
        command = [
            "-m",
            "vidsieve.cli",
            "eval",
            "--model",
            self.model,
            "--data",
            f"{task}.jsonl",
            "--frames",
            str(FRAMES),
        ]
        command += ["--max-new-tokens", str(NEW_TOKENS), "--json", "--policy", policy]
        command += [] if ratio is None else ["--retention", str(ratio)]
        measured = json.loads(run([str(self.python), *command], self.folder))
        mean = sum(one["correct"] for one in outcomes) / len(outcomes)
        assert abs(measured["accuracy"]["policy"]["value"] - mean) < 1e-6, "the outcomes are not those of the command"
        return {"outcomes": outcomes, "measured": measured, "command": shlex.join(["vidsieve", *command[2:]])}

    def _lmms(
        self, tasks: list[str], policy: str, ratio: float | None, batch: int, options: list[str], launcher: list[str]
    ) -> tuple[dict[str, list[Mapping[str, Any]]], Mapping[str, Any], str]:
        """Run lmms-eval: its samples by task, its results, and the command."""
        arguments = [f"pretrained={self.model}", f"max_num_frames={FRAMES}", "report=report.json"]
        arguments += [] if policy == "none" else [f"policy={policy}"]
        arguments += [] if ratio is None else [f"retention={ratio}"]
        command = ["-m", *launcher, *["-m"] * bool(launcher), "lmms_eval", "--model", "vidsieve"]
        command += ["--model_args", ",".join(arguments), "--tasks", ",".join(tasks), "--include_path", "tasks"]
        command += ["--batch_size", str(batch), "--log_samples", "--output_path", "out", *options]
        with tempfile.TemporaryDirectory(dir=self.folder) as out:
            command[command.index("out")] = out
            printed = run([str(self.python), *command], self.folder)
            found = [json.loads(file.read_text()) for file in Path(out).rglob("*_results.json")]
            if not found:  # lmms-eval ends well after an error, too
                raise RuntimeError(f"{shlex.join(command)}:\n{printed[-3000:]}")
            [results] = found
            samples: dict[str, list[Mapping[str, Any]]] = {}
            for task in tasks:
                [file] = Path(out).rglob(f"*_samples_{task}.jsonl")
                samples[task] = sorted(map(json.loads, file.read_text().splitlines()), key=lambda one: one["doc_id"])
            command[command.index(out)] = "out"
        return samples, results, shlex.join(["python", *command])

    def _line(
        self, task: str, way: str, policy: str, ratio: float | None, own: dict[str, Any],
        samples: list[Mapping[str, Any]], results: Mapping[str, Any], command: str,
    ) -> None:  # fmt: skip
        """Compare every example."""
        metric = METRICS[task]
        theirs = [float(one[metric]) for one in samples]
        ours = [one["correct"] for one in own["outcomes"]]
        equal = sum(one == other for one, other in zip(theirs, ours, strict=True))
        self.differing += len(ours) - equal
        score = next(value for name, value in results["results"][task].items() if name.startswith(f"{metric},"))
        attained = results["throughput"].get("avg_attained_retention", 1.0)
        own_attained = own["measured"]["accuracy"]["attained_retention"]
        wish = policy if ratio is None else f"{policy} at {ratio:g}"
        accuracy = own["measured"]["accuracy"]["policy"]["value"]
        self.lines.append(
            f"| {wish} | {task} | {way} | {100 * score:.2f} | {100 * accuracy:.2f} | {equal} of {len(ours)} | "
            f"{attained:.4f} | {own_attained:.4f} |"
        )
        print(self.lines[-1], file=sys.stderr, flush=True)
        self.commands = [command, own["command"]]


def main() -> int:
    """Parse, run, print; 1 where an example differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, default=ROOT / "build" / "lmms-environment", help="lmms-eval's environment")
    parser.add_argument("--policies", default="", help="NAME or NAME:RETENTION, comma-separated")
    parser.add_argument("--clips", type=int, default=4, help="clips, with nine questions each")
    parser.add_argument("--write", action="store_true", help="store what is printed")
    asked = parser.parse_args()
    chosen = [
        (name, float(ratio) if ratio else None)
        for name, _, ratio in (one.partition(":") for one in asked.policies.split(",") if one)
    ]
    python = environment(asked.env.absolute())
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made).resolve()
        write_tasks(python, folder, asked.clips, MODEL)
        check = Check(python, folder, MODEL)
        for policy, ratio in chosen or POLICIES:
            check.compare(policy, ratio)
    names = "('lmms-eval', 'transformers', 'torch', 'av')"
    told = f"import importlib.metadata as m; print(*(m.version(n) for n in {names}))"
    versions = subprocess.run([str(python), "-c", told], capture_output=True, text=True, check=True).stdout.split()
    text = [
        "lmms-eval {}, transformers {}, torch {}, av {}; ".format(*versions)
        + f"{MODEL}, {asked.clips} clips of {FRAMES} frames, nine questions each; float32, greedy.",
        "",
        "| policy | task | lmms-eval in | its score | `vidsieve eval` | equal examples | its retention | here |",
        "|---|---|---|---|---|---|---|---|",
        *check.lines,
        "",
        "The last two commands:",
        "",
        "```bash",
        *check.commands,
        "```",
    ]
    print("\n".join(text))
    if asked.write:
        LOG.write_text("\n".join([*text, ""]), encoding="utf-8")
    return int(check.differing > 0)


if __name__ == "__main__":
    sys.exit(main())
