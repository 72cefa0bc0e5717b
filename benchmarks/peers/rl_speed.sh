#!/usr/bin/env bash
# PPO and SAC beside Stable-Baselines3 2.9.2 on PushT in one run: environment steps per CPU-second, rollout and update
# together; same networks and hyper-parameters, one thread per operation, alternating rounds, medians.
#
#   benchmarks/peers/rl_speed.sh [rounds] [cpu-seconds per measurement]
#
# Its Python: benchmarks/peers/python.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-5}
seconds=${2:-20}

python=$(benchmarks/peers/python.sh torch)
scripts/libtorch.sh
cargo build --release --quiet -p simloop-trainers --example rl_speed
target=${CARGO_TARGET_DIR:-target}
export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 SDL_VIDEODRIVER=dummy PYGAME_HIDE_SUPPORT_PROMPT=1

log=$(mktemp)
trap 'rm -f "$log"' EXIT
for ((round = 1; round <= rounds; round++)); do
    for algo in ppo sac; do
        "$python" benchmarks/peers/rl_speed.py --algo $algo --seconds "$seconds" | tail -n 1 >>"$log"
        "$target/release/examples/rl_speed" --algo $algo --seconds "$seconds" >>"$log"
    done
    "$target/release/examples/rl_speed" --algo sac --seconds "$seconds" --bf16 >>"$log"
done
"$python" - "$log" <<'PY'
import json, os, statistics, sys

runs = [json.loads(line) for line in open(sys.argv[1])]
middle = lambda algo, engine, value: statistics.median(value(r) for r in runs if (r["algo"], r["engine"]) == (algo, engine))
rate = lambda algo, engine: middle(algo, engine, lambda r: r["env_steps"] / r["cpu_s"])
print("| algorithm | engine (parameters) | env steps per CPU-second | ratio | µs per env step: env / inference / update / rest |")
print("|---|---|---|---|---|")
for algo in ("ppo", "sac"):
    for engine in ("sb3", "simloop", *(["simloop, bf16"] if algo == "sac" else [])):
        parts = [middle(algo, engine, lambda r: r[k] / r["env_steps"] * 1e6) for k in ("env_s", "inference_s", "update_s")]
        whole = middle(algo, engine, lambda r: r["cpu_s"] / r["env_steps"] * 1e6)
        size = next(r["parameters"] for r in runs if (r["algo"], r["engine"]) == (algo, engine))
        cells = " / ".join(f"{p:,.0f}" for p in [*parts, whole - sum(parts)])
        print(f"| {algo.upper()} | {engine} ({size:,}) | {rate(algo, engine):,.0f} | "
              f"{rate(algo, engine) / rate(algo, 'sb3'):.1f} | {cells} |")
print(f"\n{len(runs) // 5} rounds. Load when finished: {os.getloadavg()[0]:.1f}.")
PY
