#!/usr/bin/env bash
# Everything that has to be tried on a GPU, in one command of at most nine minutes on one of the H200's class:
#
#   scripts/gpu_matrix.sh                  tests/gpu, then the matrix of policies, into docs/results/
#   scripts/gpu_matrix.sh --small          the same steps on a CPU with tiny models, to try the script itself
#   ATTN=flash_attention_2 scripts/gpu_matrix.sh     another attention kernel than sdpa
#   RESULTS=/some/folder BUDGET_S=300 scripts/gpu_matrix.sh
#
# The matrix: LLaVA-OneVision-7B and Qwen2-VL-7B with random weights, 32 and 64 frames, bfloat16; vidcom2, dycoke,
# fastv, pixel-change + vidcom2 and the controls at 50, 25 and 15 %, each beside all tokens. The most wanted part comes
# first. What runs out of time is stopped as by Ctrl-C, so that what was measured by then is in the file.
set -u
cd "$(dirname "$0")/.."
RESULTS=${RESULTS:-docs/results} ATTN=${ATTN:-sdpa} BUDGET_S=${BUDGET_S:-520} PYTHON=${PYTHON:-python}
POLICIES=vidcom2,dycoke,fastv,scripts/data/pixel-change-vidcom2.yaml,random,uniform-frames
STARTED=$(date +%s) FAILED=0
mkdir -p "$RESULTS"

left_s() { echo $((BUDGET_S - $(date +%s) + STARTED)); }

# step NAME SECONDS COMMAND...: at most so many seconds, and no longer than the budget lasts
step() {
  local name=$1 most=$2 left code
  shift 2
  left=$(left_s)
  if [ "$left" -lt 20 ]; then
    echo "== $name: skipped, $left s left of $BUDGET_S" | tee -a "$RESULTS/steps.txt"
    FAILED=1
    return
  fi
  [ "$most" -gt "$left" ] && most=$left
  echo "== $name ($left s left): $*"
  timeout -s INT -k 15 "$most" "$@" 2>&1 | tee "$RESULTS/$name.txt"
  code=${PIPESTATUS[0]}
  # 124: out of time; 5 of pytest: no test was there
  [ "$code" -ne 0 ] && FAILED=1
  echo "== $name: exit $code, $(left_s) s left" | tee -a "$RESULTS/steps.txt"
}

bench() {
  local name=$1 most=$2
  shift 2
  step "$name" "$most" "$PYTHON" -m vidsieve.cli bench --out "$RESULTS/$name.json" --force "$@"
}

: >"$RESULTS/steps.txt"
{
  echo "command: $0 $*"
  date -u +"date: %Y-%m-%dT%H:%MZ"
  git rev-parse HEAD 2>/dev/null | sed 's/^/commit: /'
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | sed 's/^/gpu: /'
} | tee "$RESULTS/machine.txt"

if [ "${1:-}" = "--small" ]; then
  SMALL="--resolution 64x64 --repeats 1 --max-new-tokens 2 --threads 1"
  step tests-gpu 120 "$PYTHON" -m pytest -q -n 0 -p no:cacheprovider tests/gpu
  for model in llava-onevision-tiny qwen2-vl-tiny; do
    # shellcheck disable=SC2086
    bench "$model-8" 120 --model $model --frames 8 --policies $POLICIES --retention 0.5,0.25 $SMALL
  done
else
  LARGE="--dtype bfloat16 --attn $ATTN --max-new-tokens 16 --repeats 3"
  step tests-gpu 120 "$PYTHON" -m pytest -q -n 0 -p no:cacheprovider tests/gpu
  for model in llava-onevision-7b qwen2-vl-7b; do
    # shellcheck disable=SC2086
    bench "$model-32" 130 --random-weights $model --frames 32 --resolution 448x336 --policies $POLICIES --retention 0.25,0.5,0.15 $LARGE
  done
  for model in llava-onevision-7b qwen2-vl-7b; do
    # shellcheck disable=SC2086
    bench "$model-64" 110 --random-weights $model --frames 64 --resolution 448x336 --policies $POLICIES --retention 0.25 $LARGE
  done
  for model in llava-onevision-7b qwen2-vl-7b; do
    # shellcheck disable=SC2086
    bench "$model-64-more" 100 --random-weights $model --frames 64 --resolution 448x336 --policies $POLICIES --retention 0.5,0.15 $LARGE
  done
fi
cat "$RESULTS/steps.txt"
exit $FAILED
