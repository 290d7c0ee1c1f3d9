"""What the plugin costs and what a policy gains in vLLM, on the CPU, with a bundled model of 2,048 visual tokens.

    python scripts/vllm_speed.py --write

Each round starts vLLM without a policy, with one that removes nothing, and with vidcom2 at a quarter, every other round
in the opposite order; ratios are of medians over all rounds. Times include the processor, which prepares a video's
pixels whatever the policy. `--write` stores the table in scripts/data/vllm_speed.md.
"""

import argparse
import sys
from pathlib import Path
from statistics import median

from vllm_equality import ROOT, VLLM, environment, run

TABLE = ROOT / "scripts" / "data" / "vllm_speed.md"
WAYS = {
    "no policy": {},
    "`none`": {"VIDSIEVE_POLICY": "none"},
    "`vidcom2`, 25 %": {"VIDSIEVE_POLICY": "vidcom2", "VIDSIEVE_RETENTION": "0.25"},
}


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, default=ROOT / "build" / "vllm-environment", help="vLLM's environment")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--count", type=int, default=12, help="requests, each about a video of its own")
    parser.add_argument("--write", action="store_true", help="store the table")
    asked = parser.parse_args()
    python, model = environment(asked.env, VLLM), "qwen2-vl-mini"
    ttft_ms: dict[str, list[float]] = {way: [] for way in WAYS}
    per_second: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(asked.rounds):
        for way, settings in list(WAYS.items())[:: -1 if number % 2 else 1]:
            job = {"model": model, "frames": 64, "count": asked.count}
            found = run(python, "speed.py", job, **settings)
            ttft_ms[way] += found["ttft_ms"]
            per_second[way].append(found["per_second"])
            print(number, way, round(median(found["ttft_ms"])), found["per_second"], file=sys.stderr, flush=True)
    base_ms, base_rate = median(ttft_ms["no policy"]), median(per_second["no policy"])
    lines = [
        f"{model}, {asked.count} videos of 64 frames, {asked.rounds} rounds, one thread, float32, vLLM's CPU build.",
        "",
    ]
    lines += ["| | time to first token, ms | ÷ no policy | requests a second | ÷ no policy |", "|---|---|---|---|---|"]
    for way in WAYS:
        ms, rate = median(ttft_ms[way]), median(per_second[way])
        lines.append(f"| {way} | {ms:.0f} | {ms / base_ms:.2f} | {rate:.2f} | {rate / base_rate:.2f} |")
    text = "\n".join([*lines, ""])
    print(text)
    if asked.write:
        TABLE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
