#!/usr/bin/env bash
# The long reliability runs behind the README's table: the same ledger however it is run, and under fire.
#
#   scripts/bars.sh ledger-pusht | ledger-libero | chaos-pusht | hangs-pusht | chaos-libero | chaos-train | orphans
#
# Each compares the ledger's SHA-256 (chaos-train: the trained weights') with an undisturbed run's and fails if one differs. BENCH
# and TRAIN name the programs, DEBUG_BENCH a debug build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bench=${BENCH:-target/release/bench}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pusht=(pusht --policy scripted --episodes "${EPISODES:-500}" --videos 0)
libero=(libero --suite spatial --policy scripted --trials 2 --videos 0)

digest() { # digest <folder> <arguments…>: run, print the ledger's digest
    local folder=$1
    shift
    "$bench" "$@" --output-dir "$work/$folder" 2>"$work/$folder.err" | sed -n 's/^ledger //p'
}

same() { # same <name> <expected> <got>
    if [[ $2 == "$3" ]]; then
        printf 'same   %s  %s\n' "${3:0:16}" "$1"
    else
        printf 'DIFFERS %s (expected %s)  %s\n' "${3:0:16}" "${2:0:16}" "$1"
        tail -n 3 "$work"/*.err >&2
        exit 1
    fi
}

descendants() {
    local pid
    for pid in $(cat /proc/"$1"/task/*/children 2>/dev/null); do
        printf '%s\n' "$pid"
        descendants "$pid"
    done
}

killed_and_resumed() { # killed_and_resumed <seconds> <folder> <arguments…>: kill -9 the parent, then --resume
    local after=$1 folder=$2
    shift 2
    "$bench" "$@" --output-dir "$work/$folder" >/dev/null 2>&1 &
    local parent=$!
    sleep "$after"
    kill -9 "$parent" 2>/dev/null || true
    wait "$parent" 2>/dev/null || true
    echo "       killed after $after s with $(wc -l <"$work/$folder/ledger.jsonl") episodes recorded" >&2
    digest "$folder" "$@" --resume
}

# An episode that loses its worker three times is an error by design: keep the kills rarer than that.
under_fire() { # under_fire <seconds between> <folder> <arguments…>: send SIGNAL to a random worker, KILLS times at most
    local every=$1 folder=$2 kills=0
    shift 2
    "$bench" "$@" --output-dir "$work/$folder" >"$work/$folder.out" 2>"$work/$folder.err" &
    local parent=$! workers
    while sleep "$every" && kill -0 "$parent" 2>/dev/null; do
        mapfile -t workers < <(descendants "$parent")
        if ((${#workers[@]} > 0 && kills < ${KILLS:-1000})); then
            kill -"${SIGNAL:-KILL}" "${workers[RANDOM % ${#workers[@]}]}" 2>/dev/null && kills=$((kills + 1))
        fi
    done
    wait "$parent" || true
    local faults
    faults=$(grep -oE '"class":"(worker_died|deadline)"' "$work/$folder/ledger.jsonl" | wc -l)
    echo "       $kills times SIG${SIGNAL:-KILL}, $faults attempts lost, $(wc -l <"$work/$folder/ledger.jsonl") episodes recorded" >&2
    sed -n 's/^ledger //p' "$work/$folder.out"
}

case ${1:-} in
ledger-pusht)
    expected=$(digest base "${pusht[@]}" --workers 1 --worker-kind sync)
    echo "expected ${expected:0:16}  sync, 1 worker"
    for n in 1 2 4; do
        same "threads, $n" "$expected" "$(digest "t$n" "${pusht[@]}" --workers $n)"
        same "processes, $n" "$expected" "$(digest "p$n" "${pusht[@]}" --workers $n --worker-kind processes)"
    done
    same "shuffled" "$expected" "$(digest sh "${pusht[@]}" --workers 2 --shuffle 1)"
    same "kill -9 and resume" "$expected" "$(killed_and_resumed 1.5 k "${pusht[@]}" --workers 2 --worker-kind processes)"
    if [[ -x ${DEBUG_BENCH:-target/debug/bench} ]]; then
        same "debug build" "$expected" "$(bench=${DEBUG_BENCH:-target/debug/bench} digest dbg "${pusht[@]}")"
    fi
    ;;
ledger-libero)
    expected=$(digest base "${libero[@]}" --workers 1 --worker-kind sync)
    echo "expected ${expected:0:16}  sync, 1 worker"
    for n in 1 2 4; do
        same "processes, $n" "$expected" "$(digest "p$n" "${libero[@]}" --workers $n)"
    done
    same "shuffled" "$expected" "$(digest sh "${libero[@]}" --workers 2 --shuffle 1)"
    same "kill -9 and resume" "$expected" "$(killed_and_resumed 25 k "${libero[@]}" --workers 2)"
    ;;
chaos-pusht)
    expected=$(digest base "${pusht[@]}" --workers 1 --worker-kind sync)
    same "a worker killed every ${EVERY:-2} s" "$expected" \
        "$(under_fire "${EVERY:-2}" fire "${pusht[@]}" --workers 2 --worker-kind processes)"
    ;;
hangs-pusht)
    # A stopped process hangs for ever; only its deadline ends it.
    expected=$(digest base "${pusht[@]}" --workers 1 --worker-kind sync)
    same "10 workers stopped" "$expected" \
        "$(SIGNAL=STOP KILLS=10 under_fire "${EVERY:-1}" fire "${pusht[@]}" --workers 2 --worker-kind processes)"
    ;;
chaos-libero)
    KILLS=${KILLS:-5}
    expected=$(digest base "${libero[@]}" --workers 2)
    same "a worker killed every ${EVERY:-8} s" "$expected" "$(under_fire "${EVERY:-8}" fire "${libero[@]}" --workers 2)"
    ;;
chaos-train)
    # PPO in eight worker processes. Under fire a worker is killed every 2 s, ten are stopped (a hang: only the watch over sleeping
    # it), and the trainer itself is pre-empted three times (SIGTERM, then --resume).
    train=${TRAIN:-target/release/train}
    settings=(--config scripts/chaos.toml --set "train.updates=${UPDATES:-600}")
    weights() { sha256sum <"$work/$1/final/model.safetensors" | cut -c1-64; }
    resident() { awk '/^VmRSS/ { print $2 }' "/proc/$1/status" 2>/dev/null || true; }
    begun=$SECONDS
    "$train" ppo "${settings[@]}" --output-dir "$work/calm" >"$work/calm.err" 2>&1
    calm=$((SECONDS - begun))
    begun=$SECONDS kills=0 hangs=0 stops=0 resume=() early=0 late=0
    until [[ -d $work/fire/final ]]; do
        "$train" ppo "${settings[@]}" --output-dir "$work/fire" "${resume[@]}" >>"$work/fire.err" 2>&1 &
        parent=$! started=$SECONDS
        resume=(--resume)
        while sleep 2 && kill -0 "$parent" 2>/dev/null; do
            late=$(resident "$parent")
            ((SECONDS - started > 20 && early == 0)) && early=$late
            if ((stops < 3 && SECONDS - started > calm / 4)); then
                kill -TERM "$parent" && stops=$((stops + 1))
                break
            fi
            mapfile -t workers < <(descendants "$parent")
            ((${#workers[@]} > 0)) || continue
            victim=${workers[RANDOM % ${#workers[@]}]}
            if ((hangs < 10 && kills % 5 == 4)); then
                kill -STOP "$victim" 2>/dev/null && hangs=$((hangs + 1))
            fi
            kill -KILL "${workers[RANDOM % ${#workers[@]}]}" 2>/dev/null && kills=$((kills + 1))
        done
        wait "$parent" || true
    done
    echo "       $kills killed, $hangs stopped, $stops pre-emptions in $((SECONDS - begun)) s; undisturbed $calm s"
    echo "       resident after 20 s and at the end: $early kB, $late kB"
    grep -o '"rollout/[a-z_]*":[0-9.e+]*' "$work/fire/metrics.jsonl" | tail -n 8 | tr '\n' ' '
    echo
    same "the weights" "$(weights calm)" "$(weights fire)"
    ;;
orphans)
    left=0
    for ((i = 0; i < ${ROUNDS:-100}; i++)); do
        "$bench" "${pusht[@]}" --workers 2 --worker-kind processes --output-dir "$work/o$i" >/dev/null 2>&1 &
        parent=$!
        sleep 0.4
        mapfile -t workers < <(descendants "$parent")
        kill -9 "$parent"
        wait "$parent" 2>/dev/null || true
        sleep 2
        for pid in "${workers[@]}"; do
            # A zombie has ended; only init has not looked yet.
            if grep -q '^State:.[^Z]' "/proc/$pid/status" 2>/dev/null; then left=$((left + 1)); fi
        done
        rm -rf "$work/o$i"
    done
    echo "$left orphans 2 s after ${ROUNDS:-100} parents were killed"
    ((left == 0))
    ;;
*)
    sed -n '2,8p' "$0"
    exit 2
    ;;
esac
