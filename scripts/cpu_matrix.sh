#!/usr/bin/env bash
# What a machine without a GPU can show, to be run alone on it (half an hour on two idle cores):
#
#   scripts/cpu_matrix.sh            into docs/results/cpu-*.json and .txt
#   RESULTS=/some/folder scripts/cpu_matrix.sh
#
# 1. Qwen2-VL-2B's shape with 4 layers, 32 frames: prefill, compress and operations of four policies.
# 2. LLaVA-OneVision-7B's shape with 2 layers, 32 frames, a quarter of the tokens: the language model's share, beside
#    the 70.8 % that VidCom2 reports to save there.
# 3. 64 to 512 frames: a small model whole, and what planning adds to the memory, in copies of the features.
set -eu
cd "$(dirname "$0")/.."
RESULTS=${RESULTS:-docs/results} PYTHON=${PYTHON:-python}
mkdir -p "$RESULTS"

bench() {
  local name=$1
  shift
  "$PYTHON" -m vidsieve.cli bench --out "$RESULTS/cpu-$name.json" --force "$@" | tee "$RESULTS/cpu-$name.txt"
}

bench qwen2-vl-2b --random-weights qwen2-vl-2b --layers 4 --frames 32 --policies none,vidcom2,dycoke,pixel-change,random
bench llava-onevision-7b --random-weights llava-onevision-7b --layers 2 --frames 32 --policies vidcom2,dycoke,random \
  --retention 0.25,0.5 --max-new-tokens 4 --repeats 4
bench long-videos --model qwen2-vl-mini --frames 64,128,256,512 --resolution 64x64 \
  --policies vidcom2,dycoke,pixel-change --max-new-tokens 2 --repeats 2
"$PYTHON" scripts/planning_memory.py | tee "$RESULTS/cpu-planning-memory.txt"
