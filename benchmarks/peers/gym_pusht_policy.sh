#!/usr/bin/env bash
# One checkpoint in gym-pusht 0.1.8 itself and in `bench pusht`: success and largest coverage on the same seeds.
#
#   benchmarks/peers/gym_pusht_policy.sh CHECKPOINT [episodes] [seed] [result folder of `bench pusht` to compare with]
#
# Its Python: benchmarks/peers/python.sh. OUT names the JSON file (default: gym_pusht.json in the checkpoint's folder).
set -euo pipefail
policy=$(realpath "${1:?give a checkpoint folder}")
episodes=${2:-500}
seed=${3:-0}
compare=${4:+$(realpath "$4")}
out=$(realpath -m "${OUT:-$policy/gym_pusht.json}")
cd "$(dirname "$0")/../.."

python=$(benchmarks/peers/python.sh pusht)
if [[ -z ${SERVE:-} ]]; then
    cargo build --release --quiet -p simloop-trainers --bin serve
    SERVE=${CARGO_TARGET_DIR:-target}/release/serve
fi
address=$(mktemp)
"$SERVE" "$policy" --port 0 >"$address" &
server=$!
trap 'kill $server 2>/dev/null || true; rm -f "$address"' EXIT
until grep -q http "$address"; do
    kill -0 $server
    sleep 0.1
done
url=$(grep -o 'http://[0-9.:]*' "$address")
export SDL_VIDEODRIVER=dummy PYGAME_HIDE_SUPPORT_PROMPT=1
"$python" benchmarks/peers/gym_pusht_policy.py --url "$url" --episodes "$episodes" \
    --seed "$seed" --out "$out" ${compare:+--compare "$compare"}
