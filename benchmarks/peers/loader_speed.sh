#!/usr/bin/env bash
# The loader beside Python's usual readers in one run on one core: samples per CPU-second, medians over alternating rounds.
#
#   benchmarks/peers/loader_speed.sh BRIDGE_RLDS_FOLDER PUSHT_ZARR [rounds] [cpu-seconds per measurement]
#
# BRIDGE_RLDS_FOLDER holds dataset_info.json and one train shard, PUSHT_ZARR is pusht_cchi_v7_replay.zarr.
# Its Python: benchmarks/peers/python.sh.
set -euo pipefail
bridge=$(realpath "$1")
pusht=$(realpath "$2")
cd "$(dirname "$0")/../.."
rounds=${3:-5}
seconds=${4:-2}

python=$(benchmarks/peers/python.sh loader)
cargo build --release --quiet -p simloop-trainers --example loader_speed
target=${CARGO_TARGET_DIR:-target}
export OMP_NUM_THREADS=1 BLOSC_NTHREADS=1

pin=()
command -v taskset >/dev/null && pin=(taskset -c 0)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for ((round = 1; round <= rounds; round++)); do
    "${pin[@]}" "$python" benchmarks/peers/loader_speed.py "$bridge" "$pusht" "$seconds" | tail -n 1 >>"$log"
    "${pin[@]}" "$target/release/examples/loader_speed" "$bridge" "$pusht" "$seconds" >>"$log"
done

"$python" - "$log" <<'PY'
import json, os, statistics, sys

runs = [json.loads(line) for line in open(sys.argv[1])]


def median(engine, key, what="samples_per_cpu_second"):
    return statistics.median(r["results"][key][what] for r in runs if r["engine"] == engine and key in r["results"])


print("| samples per CPU-second | Python | simloop | ratio | checksums, theirs / ours |")
print("|---|---|---|---|---|")
for key in ("bridge", "pusht_open", "pusht_images"):
    theirs, ours = median("python", key), median("simloop", key)
    sums = " / ".join(f"{median(e, key, 'checksum'):,.1f}" for e in ("python", "simloop"))
    print(f"| {key} | {theirs:,.0f} | {ours:,.0f} | {ours / theirs:.2f} | {sums} |")
print(f"\nFrames left as u8: {median('simloop', 'pusht_images_u8'):,.0f}. Load when finished: {os.getloadavg()[0]:.1f}.")
PY
