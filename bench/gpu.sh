#!/usr/bin/env bash
# The GPU benchmark and the correctness suite on a CUDA machine, in at most 9 minutes:
#
#     bench/gpu.sh OUT
#
# It needs this checkout, torch, triton, numpy, pytest, pytest-benchmark and hypothesis, and
# installs nothing; open_clip, memeff, inf-cl, cut-cross-entropy and liger-kernel are measured
# where they import. Into OUT go machine.json, the results as JSON and as tables, a log of each
# step and steps.txt with how each ended. Every group of cases is written when it is done, so
# a step that fails or is stopped leaves what it measured. Plots: `make bench-report` later.
#
# BENCH_DEVICE=cpu BENCH_SUITE=smoke BENCH_TESTS=tests/test_folds.py tries the script itself.
set -uo pipefail

if [ $# -ne 1 ]; then
    echo "usage: bench/gpu.sh OUT" >&2
    exit 64
fi
mkdir -p "$1" || exit 73
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 70
python=${PYTHON:-python3}
device=${BENCH_DEVICE:-cuda}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
unset TRITON_INTERPRET  # interpreted kernels are not what is measured
limit=540  # seconds in all
failed=0

if [ "$device" = cuda ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "bench/gpu.sh: $python finds no CUDA device through torch; nothing was measured" >&2
    exit 69
fi

# step NAME SECONDS COMMAND...: run it into NAME.log, no longer than that and than what is left.
step() {
    local name=$1 seconds=$2 left=$((limit - SECONDS)) began=$SECONDS status
    shift 2
    [ "$seconds" -lt "$left" ] || seconds=$left
    if [ "$seconds" -lt 5 ]; then
        echo "$name: not run, no time left" | tee -a "$out/steps.txt"
        failed=1
        return
    fi
    timeout --kill-after=5 "$seconds" "$@" >"$out/$name.log" 2>&1
    status=$?
    [ "$status" -eq 0 ] || failed=1
    [ "$status" -ne 124 ] || status="124, stopped after $seconds s"
    echo "$name: exit $status, $((SECONDS - began)) s" | tee -a "$out/steps.txt"
}

# Without addopts: settings of plugins that need not be there are errors under --strict-config.
pytest=("$python" -m pytest -o addopts= -p no:cacheprovider -v)

: >"$out/steps.txt"
"$python" -m bench.machine --device "$device" >"$out/machine.json" 2>"$out/machine.log"
[ -s "$out/machine.log" ] || rm -f "$out/machine.log"

step benchmark 320 "${pytest[@]}" bench/test_speed.py bench/test_memory.py \
    "--bench-device=$device" "--bench-suite=${BENCH_SUITE:-full}" "--bench-out=$out" \
    --bench-minutes 5 --benchmark-quiet  # with "=": a path of its own would move pytest's root

rows=1000000
[ "${BENCH_SUITE:-full}" = full ] || rows=1000
step largest 60 "$python" -m bench.largest --rows "$rows" --device "$device" --out "$out/largest.md"

# Memory errors and races in every kernel of a step, on tiles with tails, where the tool is there.
small='
import torch
from bench.calls import step
for dtype in (torch.float32, torch.bfloat16):
    step("triton", (150, 125), 48, "'$device'", dtype)()
'
if [ "$device" = cuda ] && command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        step "$tool" 45 compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" -c "$small"
    done
else
    echo "memcheck, racecheck: not run, no compute-sanitizer" | tee -a "$out/steps.txt"
fi

# The backends on this device first: what is cut off by the limit is the least of it.
workers=()
"$python" -c 'import xdist' 2>/dev/null && workers=(-n 8 --dist loadgroup)
read -r -a tests <<<"${BENCH_TESTS:-tests/backends/test_backends.py tests --ignore=tests/examples}"
step tests $((limit - SECONDS - 20)) "${pytest[@]}" "${tests[@]}" "${workers[@]}"

limit=$((limit + 15))  # kept back for the tables
step report 15 "$python" -m bench.report --results "$out" --readme /dev/null --no-plots
exit $failed
