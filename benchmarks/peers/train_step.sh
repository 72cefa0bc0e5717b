#!/usr/bin/env bash
# A training step beside Python PyTorch 2.11 in one run: same models, batch 64, same threads; alternating rounds, medians.
#
#   benchmarks/peers/train_step.sh [rounds] [seconds per measurement] [threads]
#
# Its Python: benchmarks/peers/python.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-3}
seconds=${2:-15}
threads=${3:-2}

python=$(benchmarks/peers/python.sh torch)
scripts/libtorch.sh
cargo build --release --quiet -p simloop-trainers --example train_step
target=${CARGO_TARGET_DIR:-target}
export CUDA_VISIBLE_DEVICES=

log=$(mktemp)
trap 'rm -f "$log"' EXIT
for ((round = 1; round <= rounds; round++)); do
    for model in unet vla; do
        "$python" benchmarks/peers/train_step.py --model $model --threads "$threads" --seconds "$seconds" >>"$log"
        "$python" benchmarks/peers/train_step.py --model $model --threads "$threads" --seconds "$seconds" --fused >>"$log"
        "$target/release/examples/train_step" --model $model --threads "$threads" --seconds "$seconds" >>"$log"
    done
done
"$python" - "$log" <<'PY'
import json, os, statistics, sys

runs = [json.loads(line) for line in open(sys.argv[1])]
middle = lambda model, engine, key: statistics.median(r[key] for r in runs if (r["model"], r["engine"]) == (model, engine))
print("| model (parameters) | Python, ms wall / CPU | Python fused AdamW | simloop | simloop / Python | / fused |")
print("|---|---|---|---|---|---|")
for model in ("unet", "vla"):
    size = {r["engine"]: r["parameters"] for r in runs if r["model"] == model}
    cell = lambda engine: f"{middle(model, engine, 'wall_ms'):.0f} / {middle(model, engine, 'cpu_ms'):.0f}"
    ratio = lambda engine: middle(model, "simloop", "wall_ms") / middle(model, engine, "wall_ms")
    print(f"| {model} ({size['python'] / 1e6:.2f} M, ours {size['simloop'] / 1e6:.2f} M) | {cell('python')} | "
          f"{cell('python fused')} | {cell('simloop')} | {ratio('python'):.2f} | {ratio('python fused'):.2f} |")
print(f"\nLoad when finished: {os.getloadavg()[0]:.1f}.")
PY
