"""Start vLLM's server under a policy and ask it about videos, as a client would.

    python scripts/vllm_server.py --model qwen3-vl-random

Prints what it answers to a video, to one that is too short for the ratio and to the first once more, and how a server
ends that is given a wrong policy. The environment is that of scripts/vllm_equality.py.
"""

import argparse
import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from vllm_equality import MODELS, PARTS, ROOT, SETTINGS, VLLM, environment

RATIO = 0.1
LONG, SHORT = 64, 4
MAKE = """import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from vllm_models import servable
from vidsieve import load_policy
from vidsieve.media import write_video
into, model, positions, ratio, *frames = Path(sys.argv[2]), *sys.argv[3:]
print(servable(model, into / model))
policy = load_policy("evs", retention_ratio=float(ratio), settings={"positions": positions})
(into / "policy.yaml").write_text(policy.to_yaml())
for count in map(int, frames):
    pixels = torch.randint(0, 255, (count, 3, 128, 128), dtype=torch.uint8)
    write_video(into / f"{count}.mp4", pixels, fps=4)
"""


def serving(python: Path, model: str, policy: str, port: int, log: Path) -> subprocess.Popen[bytes]:
    """A server's process; what it says goes to `log`."""
    options = {
        "--model": model, "--served-model-name": "served", "--dtype": "float32", "--block-size": "32",
        "--max-model-len": "4096", "--max-num-seqs": "4", "--port": str(port),
        "--limit-mm-per-prompt": '{"video": 1, "image": 1}',
    }  # fmt: skip
    words = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    words += [word for pair in options.items() for word in pair]
    settings = {name: value for name, value in SETTINGS.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    with log.open("wb") as out:
        return subprocess.Popen(
            words,
            env=os.environ | settings | {"VIDSIEVE_POLICY": policy, "VLLM_LOGGING_LEVEL": "INFO"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def ready(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server listens; False if it ended before."""
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                return True
        except OSError:
            time.sleep(1)
    return False


def ask(port: int, video: Path) -> str:
    """What the server answers about a video, in a line."""
    url = "data:video/mp4;base64," + base64.b64encode(video.read_bytes()).decode()
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "what color is the disc ?"}]
    body = {"model": "served", "max_tokens": 4, "temperature": 0, "messages": [{"role": "user", "content": content}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            told: dict[str, Any] = json.loads(answer.read())
            return f"{answer.status}, {told['usage']['prompt_tokens']} tokens of prompt"
    except urllib.error.HTTPError as error:
        return f"{error.code}, {json.loads(error.read())['error']['message']}"


def main() -> int:
    """Make the files, start, ask, stop; then start with a policy that cannot be served."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, default=ROOT / "build" / "vllm-environment", help="vLLM's environment")
    parser.add_argument("--model", default="qwen2-vl-mini", choices=MODELS)
    asked = parser.parse_args()
    python = environment(asked.env, VLLM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder)
        words = [PARTS, into, asked.model, MODELS[asked.model][1], RATIO, LONG, SHORT]
        made = subprocess.run(
            [str(python), "-c", MAKE, *map(str, words)], env=os.environ | SETTINGS, capture_output=True, check=True
        )
        model, log = made.stdout.decode().strip().splitlines()[-1], into / "log"
        process = serving(python, model, str(into / "policy.yaml"), port, log)
        try:
            if ready(process, port):
                for count in (LONG, SHORT, LONG):
                    print(f"{count} frames: {ask(port, into / f'{count}.mp4')}", flush=True)
        finally:
            process.terminate()
            process.wait()
        print(*[line.partition("] ")[2] for line in log.read_text().splitlines() if "] vidsieve: " in line], sep="\n")
        wrong = serving(python, model, "fastv", port, log)
        print(f"fastv: listens {ready(wrong, port)}, ends with {wrong.wait()}: {log.read_text().splitlines()[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
