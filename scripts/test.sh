#!/usr/bin/env bash
# Everything that can be tested on this machine, in phases, with the time of each.
#
#   scripts/test.sh         set-up (libtorch, LIBERO, the WidowX stand-in), lints, build, tests
#   scripts/test.sh lint    libtorch and the lints
#
# LIBERO and the WidowX stand-in are set-ups that may fail: their tests then say "skipped: <reason>", and the end repeats every such line.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p target
log=target/test.log
cargo=${CARGO:-cargo}
times=()
# Nothing here is built twice: the compiler's notes for the next build would only fill the disk.
export CARGO_INCREMENTAL=0

# What a fresh clone grows by: 2.0 GB of installations and 4.6 GB of build. A disk that fills up says so late and badly.
need_mb=7000
free_mb=$(df --output=avail --block-size=1M . | tail -n 1)
if [ ! -d target/debug ] && [ "${1:-}" != lint ] && [ "$free_mb" -lt "$need_mb" ]; then
    echo "test: $((free_mb)) MB are free, a first build with its tests needs $need_mb; remedy: free some space" >&2
    exit 1
fi

phase() { # phase <name> <command…>: run it, remember how long it took
    local name=$1 start=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    "$@" || {
        printf '\n== %s failed after %d s: %s\n' "$name" $((SECONDS - start)) "$*" >&2
        exit 1
    }
    times+=("$(printf '%6d s  %s' $((SECONDS - start)) "$name")")
}

libero() {
    scripts/apt-gl.sh || true
    scripts/libero.sh || echo "LIBERO is not installed here (reason above): its tests are skipped"
}

widowx() {
    scripts/widowx.sh || echo "the WidowX stand-in is not installed here (reason above): its tests are skipped"
}

serve_clients() {
    scripts/serve_clients.sh || echo "openpi-client is not installed here (reason above): its test is skipped"
}

scripts_parse() {
    local file
    for file in scripts/*.sh .ci/run; do
        bash -n "$file"
    done
    # Parsed, not compiled: no __pycache__ in the tree.
    git ls-files '*.py' | python3 -c '
import ast, sys
for path in sys.stdin.read().split():
    with open(path, encoding="utf-8") as file:
        ast.parse(file.read(), path)'
}

tests() {
    "$cargo" test --workspace --no-fail-fast -- --show-output 2>&1 | tee "$log"
}

phase "libtorch" scripts/libtorch.sh
phase "scripts parse" scripts_parse
phase "format" "$cargo" fmt --all --check
if [ "${1:-}" != lint ]; then
    phase "LIBERO" libero
    phase "WidowX stand-in" widowx
    phase "clients of the policy server" serve_clients
fi
phase "clippy" "$cargo" clippy --workspace --all-targets --quiet -- -D warnings
phase "rustdoc" env RUSTDOCFLAGS="-D warnings" "$cargo" doc --workspace --no-deps --quiet
if [ "${1:-}" != lint ]; then
    phase "build" "$cargo" build --workspace --bins --tests
    phase "tests" tests
fi

printf '\n== done in %d s\n' "$SECONDS"
printf '%s\n' "${times[@]}"
if [ "${1:-}" != lint ]; then
    awk '/^test result:/ { passed += $4; failed += $6 } END { printf "%d tests passed, %d failed\n", passed, failed }' "$log"
    grep -h 'skipped: ' "$log" | sed 's/^.*skipped: /skipped: /' | sort | uniq -c | sort -rn || true
fi
