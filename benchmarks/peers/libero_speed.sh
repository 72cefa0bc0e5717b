#!/usr/bin/env bash
# What the LIBERO bridge costs: the same steps through `bench speed libero` and in one Python process, in CPU seconds.
#
#   benchmarks/peers/libero_speed.sh [rounds] [steps per run] [rounds with images] [steps per run with images]
#
# Each round runs every program once, in turns forwards and backwards, so that a drift of the machine meets all alike.
# Ratios are taken within a round; the table shows their medians and, in brackets, the least and the greatest.
#
#   BENCH          the program (default target/release/bench)
#   LIBERO_PYTHON  the Python that has LIBERO (default .simloop/libero/bin/python, from `make libero`)
#   LIBERO_ASSETS  LIBERO's assets (default ../shared/data/libero_assets)
#   CORE           the core to stay on (default 1; empty: any)
#   RAW            a file for the measurements (default: thrown away)
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-9}
steps=${2:-200}
image_rounds=${3:-5}
image_steps=${4:-40}

bench=${BENCH:-target/release/bench}
python=${LIBERO_PYTHON:-.simloop/libero/bin/python}
[[ -x $bench ]] || { echo "no program at $bench; cargo build --release -p simloop-benchmarks --bin bench, or name it with BENCH" >&2; exit 1; }
[[ -x $python ]] || { echo "no Python at $python; run \`make libero\`, or name it with LIBERO_PYTHON" >&2; exit 1; }
export LIBERO_ASSETS=${LIBERO_ASSETS:-$PWD/../shared/data/libero_assets}
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 LP_NUM_THREADS=1 NUMBA_NUM_THREADS=1

pin=()
core=${CORE-1}
[[ -n $core ]] && command -v taskset >/dev/null && pin=(taskset -c "$core")
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# measure <kind> <round>: one line "<round> <kind> <load> <JSON>".
measure() {
    local ours=("$bench" speed libero --python "$python" --tasks 0 --json)
    local theirs=("$python" benchmarks/peers/libero_speed.py)
    local line
    case $1 in
        plain) line=$("${pin[@]}" "${theirs[@]}" --steps "$steps" 2>/dev/null) ;;
        lean) line=$("${pin[@]}" "${theirs[@]}" --steps "$steps" --observables policy 2>/dev/null) ;;
        bench) line=$("${pin[@]}" "${ours[@]}" --steps "$steps" 2>/dev/null) ;;
        plain_images) line=$("${pin[@]}" "${theirs[@]}" --steps "$image_steps" --cameras both 2>/dev/null) ;;
        lean_images) line=$("${pin[@]}" "${theirs[@]}" --steps "$image_steps" --cameras both --observables policy 2>/dev/null) ;;
        bench_images) line=$("${pin[@]}" "${ours[@]}" --steps "$image_steps" --frames every 2>/dev/null) ;;
        bench_chunk) line=$("${pin[@]}" "${ours[@]}" --steps "$image_steps" --frames last --chunk 8 2>/dev/null) ;;
    esac
    echo "$2 $1 $(cut -d' ' -f1 /proc/loadavg) ${line##*$'\n'}" >>"$log"
}

alternate() {
    local rounds=$1 kinds=("${@:2}") round i
    for ((round = 1; round <= rounds; round++)); do
        for ((i = 0; i < ${#kinds[@]}; i++)); do
            if ((round % 2)); then measure "${kinds[i]}" "$round"; else measure "${kinds[-1 - i]}" "$round"; fi
        done
    done
}
alternate "$rounds" plain bench lean
alternate "$image_rounds" plain_images bench_images lean_images bench_chunk
if [[ -n ${RAW:-} ]]; then cp "$log" "$RAW"; fi

"$python" - "$log" <<'PY'
import json, statistics, sys

runs, loads = {}, []
for line in open(sys.argv[1]):
    round_, kind, load, result = line.split(" ", 3)
    result = json.loads(result)
    runs.setdefault(kind, {})[round_] = 1000 * result["cpu_secs"] / result["steps"]
    loads.append(float(load))


def cost(kind):
    values = runs[kind].values()
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def row(title, theirs, ours, bar):
    # Dearer than the peer for the bridge; cheaper than always-on for a chunk.
    above, below = (ours, theirs) if bar.startswith("<=") else (theirs, ours)
    ratios = [runs[above][r] / runs[below][r] for r in runs[above] if r in runs[below]]
    spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
    total = sum(runs[above].values()) / sum(runs[below].values())
    print(f"| {title} | {cost(theirs)} | {cost(ours)} | {spread} | {total:.3f} | {bar} |")


print("| steps | one Python process, CPU ms | `bench`, CPU ms | ratio | of the totals | bar |")
print("|---|---|---|---|---|---|")
row("no images", "plain", "bench", "<= 1.03")
row("no images, unread observables off on both sides", "lean", "bench", "<= 1.03")
row("both cameras every step", "plain_images", "bench_images", "<= 1.03")
row("both cameras every step, unread observables off on both sides", "lean_images", "bench_images", "<= 1.03")
row("chunk of 8, one image pair; against always-on in Python", "plain_images", "bench_chunk", ">= 4")
row("the same against always-on in `bench`", "bench_images", "bench_chunk", ">= 4")
print(f"\nCPU milliseconds per step, libero_spatial/0, 256 x 256 pixels. Load {min(loads):.1f} to {max(loads):.1f}.")
PY
