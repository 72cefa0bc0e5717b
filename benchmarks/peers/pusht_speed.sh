#!/usr/bin/env bash
# PushT beside gym-pusht 0.1.8 in one run on one core: steps per CPU-second, medians over alternating rounds.
#
#   benchmarks/peers/pusht_speed.sh [rounds] [cpu-seconds per measurement]
#
# Its Python: benchmarks/peers/python.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-5}
seconds=${2:-2}

python=$(benchmarks/peers/python.sh pusht)
cargo build --release --quiet -p simloop-envs --example pusht_speed
target=${CARGO_TARGET_DIR:-target}
export OMP_NUM_THREADS=1 SDL_VIDEODRIVER=dummy PYGAME_HIDE_SUPPORT_PROMPT=1

pin=()
command -v taskset >/dev/null && pin=(taskset -c 0)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for ((round = 1; round <= rounds; round++)); do
    "${pin[@]}" "$python" benchmarks/peers/pusht_speed.py --seconds "$seconds" | tail -n 1 >>"$log"
    "${pin[@]}" "$target/release/examples/pusht_speed" "$seconds" >>"$log"
done
"$target/release/examples/pusht_speed" --threads "$seconds" >>"$log"

"$python" - "$log" <<'PY'
import json, os, statistics, sys

runs = [json.loads(line) for line in open(sys.argv[1])]
rate = lambda engine, key: statistics.median(
    r["results"][key]["steps_per_cpu_second"] for r in runs if r["engine"].startswith(engine) and key in r["results"]
)
share = lambda engine, key: next(
    r["results"][key]["contact_share"] for r in runs if r["engine"].startswith(engine) and key in r["results"]
)
keys = [k for k in runs[0]["results"]]
print("| observation / actions | gym-pusht 0.1.8 | simloop | ratio | contact share, theirs / ours |")
print("|---|---|---|---|---|")
for key in keys:
    theirs, ours = rate("gym-pusht", key), rate("simloop", key)
    contact = f"{share('gym-pusht', key):.2f} / {share('simloop', key):.2f}"
    print(f"| {key} | {theirs:,.0f} | {ours:,.0f} | {ours / theirs:.1f} | {contact} |")
threads = runs[-1]["results"]
one, two = (threads[f"threads_{n}"]["steps_per_second"] for n in (1, 2))
print(f"\nSteps per CPU-second on one core. ThreadedVecEnv, pushing: {one:,.0f} steps/s on 1 thread,", end=" ")
print(f"{two:,.0f} on 2 ({two / one:.2f}x). Load when finished: {os.getloadavg()[0]:.1f}.")
PY
