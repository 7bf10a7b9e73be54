#!/usr/bin/env bash
# What a key costs: three nodes in memory, filled with keys of 14 bytes and values of 100, each node holding all of
# them; the same with `--data-dir`, before and after a restart of all three, and how long that takes; and Redis with
# as many of the same size, if `redis-server` is installed. Resident memory, less that of the empty process, divided
# by the number of keys.
#
#   cargo build --release && tests/memory.sh        KEYS=100000 for a quick look, BIN=... for another build
set -euo pipefail
cd "$(dirname "$0")/.."

KEYS=${KEYS:-1000000}
BIN=${BIN:-target/release/roundtable}
# Fixed: of nodes that all come back at other ports at once, none would find another.
FIRST_PORT=${FIRST_PORT:-7451}
WORK=$(mktemp -d /var/tmp/roundtable-memory.XXXXXX)
export ROUNDTABLE_RUNTIME_DIR=$WORK/run
pids=()
clean_up() {
    for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
    rm -rf "$WORK"
}
trap clean_up EXIT

of() { awk -v name="^$2:" '$0 ~ name { print $2 * 1024 }' "/proc/$1/status"; }
resident() { of "$1" VmRSS; }
mebibytes() { awk "BEGIN { printf \"%.1f\", $1 / 1048576 }"; }
row() { printf '%-24s %10.1f MiB %8d B per key, %d beside its 114 B\n' \
    "$1" "$(mebibytes "$2")" $((($2 - $3) / KEYS)) $((($2 - $3) / KEYS - 114)); }
# Three nodes; `durable`: with a directory each.
start() {
    pids=()
    for i in 0 1 2; do
        local flags=(--port $((FIRST_PORT + i)))
        [ "$1" = durable ] && flags+=(--data-dir "$WORK/data$i")
        "$BIN" up "${flags[@]}" >"$WORK/log$i" 2>&1 &
        pids+=($!)
    done
}
stop() {
    for pid in "${pids[@]}"; do kill -"$1" "$pid"; done
    for pid in "${pids[@]}"; do wait "$pid" || true; done
    pids=()
}
empty=()
fill() {
    for _ in $(seq 100); do
        "$BIN" members --format json 2>/dev/null | grep -q '"alive":3,' && break
        sleep 0.2
    done
    empty=()
    for pid in "${pids[@]}"; do empty+=("$(resident "$pid")"); done
    # Until every node has a replica of everything.
    sleep 5
    "$BIN" bench --op get --keys "$KEYS" --value-size 100 --seconds 1 --keep --timeout 30s >/dev/null
    # What was received is worked off, and logs are cut.
    sleep 5
}
rows() { for i in 0 1 2; do row "$1 node $((i + 1))" "$(resident "${pids[i]}")" "${empty[i]}"; done; }

start memory
fill
rows 'in memory,'
stop KILL

start durable
fill
rows 'durable,'
stop TERM
before=$(date +%s%N)
start durable
for i in 0 1 2; do until grep -q 'back in the swarm' "$WORK/log$i"; do sleep 0.05; done; done
# Exit code 0: all its replicas have a quorum.
until "$BIN" status >/dev/null 2>&1; do sleep 0.05; done
printf 'restarted: all served again after %d ms\n' $((($(date +%s%N) - before) / 1000000))
# What was needed for reading is given back to the system within some ten seconds.
sleep 20
rows 'restarted,'
for i in 0 1 2; do printf 'at most %s MiB  ' "$(mebibytes "$(of "${pids[i]}" VmHWM)")"; done
echo
stop KILL

if command -v redis-server >/dev/null; then
    redis-server --port 0 --unixsocket "$WORK/redis" --save '' --enable-debug-command local >/dev/null &
    pids+=($!)
    ask() { redis-cli -s "$WORK/redis" "$@" 2>/dev/null; }
    until [ "$(ask ping)" = PONG ]; do sleep 0.1; done
    used() { ask info memory | tr -d '\r' | sed -n 's/^used_memory_rss://p'; }
    before=$(used)
    ask debug populate "$KEYS" bench/0 100 >/dev/null
    sleep 1
    row "Redis $(redis-server --version | sed 's/.* v=\([0-9.]*\).*/\1/')" "$(used)" "$before"
fi
