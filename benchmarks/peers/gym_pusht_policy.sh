#!/usr/bin/env bash
# One checkpoint in gym-pusht 0.1.8 itself and in `bench pusht`: success and largest coverage on the same seeds.
#
#   benchmarks/peers/gym_pusht_policy.sh CHECKPOINT [episodes] [seed] [result folder of `bench pusht` to compare with]
#
# PEER_PYTHON names an interpreter that has gym-pusht 0.1.8 and msgpack; without it a virtual environment is made once in
# .simloop/peers/pusht from PyPI. OUT names the JSON file (default: gym_pusht.json in the checkpoint's folder).
set -euo pipefail
policy=$(realpath "${1:?give a checkpoint folder}")
episodes=${2:-500}
seed=${3:-0}
compare=${4:+$(realpath "$4")}
out=$(realpath -m "${OUT:-$policy/gym_pusht.json}")
cd "$(dirname "$0")/../.."

python=${PEER_PYTHON:-.simloop/peers/pusht/bin/python}
if [[ -z ${PEER_PYTHON:-} ]] && ! "$python" -c 'import gym_pusht, msgpack' 2>/dev/null; then
    python3 -m venv .simloop/peers/pusht
    .simloop/peers/pusht/bin/pip install --quiet gym-pusht==0.1.8 pymunk==6.11.1 msgpack==1.1.0
fi
if [[ -z ${BENCH:-} ]]; then
    cargo build --release --quiet -p simloop-benchmarks --bin bench
    BENCH=${CARGO_TARGET_DIR:-target}/release/bench
fi
export SDL_VIDEODRIVER=dummy PYGAME_HIDE_SUPPORT_PROMPT=1
"$python" benchmarks/peers/gym_pusht_policy.py --bench "$BENCH" --policy "$policy" --episodes "$episodes" \
    --seed "$seed" --out "$out" ${compare:+--compare "$compare"}
