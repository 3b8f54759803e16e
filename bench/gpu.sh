#!/usr/bin/env bash
# The first minutes of a GPU: is everything right, how fast is it, which settings are faster?
#
#     bench/gpu.sh OUT [first|second]
#
# The first part takes 420 seconds at most, the second (memory checker, hardware counters) 150; without
# a choice both run, in 570. Needed are this checkout, python3 (or $PYTHON) with torch, triton, numpy,
# pytest, pytest-benchmark, psutil, einops and hypothesis; nothing is installed. Peers are measured
# where they import.
# OUT gets at most 8 files, each rewritten by rename as results come: ceilings.json, right.json,
# headline.json, sweep.json, again.json, peers.json, tune.json, all.log. bench/gpu has the phases.
#
# BENCH_DEVICE=cpu BENCH_SUITE=smoke bench/gpu.sh OUT rehearses all of it, in 180 seconds on two cores.
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: bench/gpu.sh OUT [first|second]" >&2
    exit 64
fi
mkdir -p "$1" || exit 73
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 70
python=${PYTHON:-python3}
device=${BENCH_DEVICE:-cuda}
suite=${BENCH_SUITE:-full}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

if [ "$device" = cpu ]; then
    if [ "$suite" != smoke ]; then
        echo "bench/gpu.sh: BENCH_DEVICE=cpu goes with BENCH_SUITE=smoke, got $suite" >&2
        exit 64
    fi
    export TRITON_INTERPRET=1 OMP_NUM_THREADS=1 # batches this small only wait for a second thread
else
    unset TRITON_INTERPRET # interpreted kernels are not what is measured
    if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        echo "bench/gpu.sh: $python finds no CUDA device through torch; nothing was measured" >&2
        exit 69
    fi
fi

# Nobody's measured settings, and a cache of kernels that this run fills itself.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export MXM_KERNELS_TUNED=$scratch/tuned TRITON_CACHE_DIR=$scratch/triton

smoke=()
[ "$suite" = full ] || smoke=(--smoke)
"$python" -m bench.gpu "$out" ${2:+"$2"} "--device=$device" ${smoke[@]+"${smoke[@]}"}
