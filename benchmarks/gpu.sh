#!/usr/bin/env bash
# Every figure that needs a GPU: benchmarks/gpu.sh FOLDER [PART...]; parts: tests kernels updates compiled trainer.
#
# FOLDER/results.jsonl gets one line a step (name, exit code, seconds, the benchmark's JSON), FOLDER/log.txt the rest,
# FOLDER/tables.md at the end the tables of all that is there. A step that fails or runs past its own limit stops no
# other. After LIMIT seconds (none) the rest is left out; the next call with the same folder makes what is not there yet
# and what has failed. SIZES are the critic's widths, the most telling first (128 1024 256 512), PYTHON is the
# interpreter (.venv/bin/python).
set -uo pipefail
cd "$(dirname "$0")/.."
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
[ $# -gt 0 ] || set -- tests kernels updates compiled trainer
python=${PYTHON:-.venv/bin/python}
limit=${LIMIT:-1000000}
sizes=${SIZES:-128 1024 256 512}
export PYTHONPATH=$PWD OMP_NUM_THREADS=4
nvidia-smi --query-gpu=name,driver_version,power.limit,clocks.sm,memory.total --format=csv >> "$folder/log.txt" 2>&1

step() { # name, seconds, command
  local name=$1 most=$2 begun=$SECONDS code output=null
  shift 2
  if grep -qsF "{\"step\": \"$name\", \"code\": 0," "$folder/results.jsonl"; then
    echo "$name: there already"
    return
  fi
  local left=$((limit - SECONDS))
  if [ "$left" -lt 15 ]; then
    echo "$name: left out, $limit seconds are over"
    return
  fi
  [ "$most" -lt "$left" ] || most=$left
  echo "== $name: $*" >> "$folder/log.txt"
  # Into a file: a pipe would stay open as long as any process that the step left behind.
  timeout --kill-after=10 "$most" "$@" > "$folder/output.txt" 2>> "$folder/log.txt"
  code=$?
  cat "$folder/output.txt" >> "$folder/log.txt"
  [ "$code" -ne 0 ] || output=$(tail -n 1 "$folder/output.txt")
  [[ $output == \{*\} ]] || output=null
  printf '{"step": "%s", "code": %d, "seconds": %d, "result": %s}\n' \
    "$name" "$code" $((SECONDS - begun)) "$output" >> "$folder/results.jsonl"
  echo "$name: exit code $code after $((SECONDS - begun)) s"
}

update() { # name, seconds, options of benchmarks.update
  step "update $1" "$2" "$python" -m benchmarks.update --device cuda --json "${@:3}"
}

for part in "$@"; do
  case $part in
    tests)
      for slow in "not slow" slow; do
        step "tests, $slow" 900 "$python" -m pytest -c /dev/null --rootdir . -q -p no:cacheprovider -m "$slow" \
          tests/training/test_cuda.py tests/nn/test_attention_implementations.py tests/nn/test_attention_choice.py
      done
      ;;
    kernels)
      for precision in bfloat16 tf32 float32; do
        step "attention $precision" 180 "$python" -m benchmarks.attention --device cuda --precision $precision \
          --elements 4194304 --json
      done
      step "memory" 180 "$python" -m benchmarks.memory --device cuda --json
      step "memory bfloat16" 180 "$python" -m benchmarks.memory --device cuda --precision bfloat16 --json
      ;;
    updates)
      for size in $sizes; do
        for precision in bfloat16 tf32 float32; do
          update "$size $precision eager" 120 --hidden-dim $size --precision $precision
          update "$size $precision captured" 120 --hidden-dim $size --precision $precision --cuda-graphs
        done
        update "$size bfloat16 captured, triton" 120 --hidden-dim $size --precision bfloat16 --cuda-graphs \
          --implementation triton
      done
      for size in 128 1024; do
        update "$size bfloat16 eager, profile" 120 --hidden-dim $size --precision bfloat16 --profile
      done
      ;;
    compiled)
      for size in $sizes; do
        update "$size bfloat16 compiled and captured" 400 --hidden-dim $size --precision bfloat16 --compile \
          --cuda-graphs --profile
        update "$size tf32 compiled and captured" 400 --hidden-dim $size --precision tf32 --compile --cuda-graphs
      done
      for size in 128 1024; do
        update "$size bfloat16 compiled" 400 --hidden-dim $size --precision bfloat16 --compile
        update "$size bfloat16 compiled and captured, triton" 400 --hidden-dim $size --precision bfloat16 --compile \
          --cuda-graphs --implementation triton
      done
      ;;
    trainer)
      step "trainer eager" 240 "$python" -m benchmarks.trainer --device cuda --json
      step "trainer captured" 240 "$python" -m benchmarks.trainer --device cuda --precision bfloat16 --cuda-graphs --json
      step "trainer compiled and captured" 600 "$python" -m benchmarks.trainer --device cuda --precision bfloat16 \
        --compile --cuda-graphs --json
      step "data" 240 "$python" -m benchmarks.data --device cuda --json
      ;;
    *)
      echo "benchmarks/gpu.sh: unknown part $part" >&2
      exit 2
      ;;
  esac
done
rm -f "$folder/output.txt"
"$python" -m benchmarks.gpu_tables "$folder" | tee "$folder/tables.md"
