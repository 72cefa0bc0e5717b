#!/usr/bin/env bash
# A training step beside Python PyTorch 2.11 in one run: same models, batch 64, same threads; alternating rounds, medians.
#
#   benchmarks/peers/train_step.sh [rounds] [seconds per measurement] [threads]
#
# PEER_PYTHON names an interpreter that has torch 2.11; without it a virtual environment is made once in
# .simloop/peers/torch from PyPI (CPU parts only).
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-3}
seconds=${2:-15}
threads=${3:-2}

python=${PEER_PYTHON:-.simloop/peers/torch/bin/python}
if [[ ! -x $python ]]; then
    python3 -m venv .simloop/peers/torch
    # Without dependencies: torch's own list would bring 4 GB of CUDA libraries that a CPU never opens.
    .simloop/peers/torch/bin/pip install --quiet --no-deps torch==2.11.0 nvidia-cuda-cupti==13.0.85 \
        nvidia-cuda-runtime==13.0.96
    .simloop/peers/torch/bin/pip install --quiet numpy filelock typing_extensions sympy networkx jinja2 fsspec
    python=.simloop/peers/torch/bin/python
fi
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
