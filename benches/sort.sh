#!/usr/bin/env bash
# Sorts records of 100 bytes: GNU sort, a plain Rust program in memory, and 1, 3 and 5 nodes of this machine; with a node
# that is killed in the middle; and with nine of ten keys, or whole records, the same. Every result is compared with that
# of GNU sort. Fails if one differs, if a node takes more memory than its budget, or if one holds more than twice its
# share (a fifth, if there are five) of what was sorted.
#   benches/sort.sh [MEGABYTES]     1000 unless given; needs about ten times as much room in TMPDIR
# As root on Linux in a network namespace of its own, so that nothing else is counted.
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/nodes.bash
alone "$0" "$@"
megabytes=${1:-1000}
# MiB of memory for sorts, per node; GNU sort has as much.
budget=256
rustc --edition 2024 -O benches/sort.rs -o "$work/plain"

failures=()
fail() { failures+=("$*"); }
number() { awk "BEGIN { printf \"%$1\", ($2) }"; }

# seconds and CPU seconds of a command, into `took` and `used`.
measure() {
    local TIMEFORMAT='%R %U %S' user system
    read -r took user system < <({ time "$@" >/dev/null 2>"$work/errors"; } 2>&1)
    used=$(number .2f "$user + $system")
}
checksum() { sha256sum | cut -d' ' -f1; }
row() { printf '| %-42s | %7s | %12s | %6s | %11s | %8s | %7s | %4s | %6s | %s |\n' "$@"; }
# name, bytes over the network, memory, share of runs, share of the output, and whether the result is the same.
report() {
    row "$1" "$(number .1f "$took")" "$(number .1f "$used / $megabytes * 1000")" "$(number .2f "$used / $gnu")" \
        "$(number .0f "($used > $plain) ? 100 - 100 * $plain / $used : 0") %" "$2" "$3" "$4" "$5" "$6"
}

# Sorts a file as others do: how it is called, and the file.
baselines() {
    local name=$1 file=$2
    measure bash -c 'LC_ALL=C exec sort --parallel=2 -S "$1"M -T "$2" -o "$2/gnu" "$3"' _ "$budget" "$work" "$file"
    gnu=$used gnu_took=$took
    wanted=$(checksum <"$work/gnu")
    rm "$work/gnu"
    measure bash -c 'exec "$1" sort "$2" >"$3"' _ "$work/plain" "$file" "$work/mine"
    plain=$used
    [ "$(checksum <"$work/mine")" = "$wanted" ] || fail "the plain program differs from GNU sort"
    rm "$work/mine"
    report "$name: Rust, in memory" - - - - same
    took=$gnu_took used=$gnu
    report "$name: GNU sort --parallel=2" - "$budget MiB" - - same
}

# Of each node, bytes of its runs now, or of its blocks.
held() {
    local node
    for node in "$work"/node*/; do
        # Unquoted: it is a pattern. There may be nothing yet, or nothing any more.
        { du -sb "$node"roundtable-blocks-*/$1 2>/dev/null || true; } | awk '{ sum += $1 } END { printf "%.0f\n", sum }'
    done
}
runs() { held runs; }
blocks() { held '[0-9a-f]*'; }
# The greatest of some numbers, as a multiple of a share.
greatest() { sort -n | tail -1 | awk -v share="$1" '{ printf "%.2f", $1 / share }'; }

# Sorts the dataset `records` on the nodes that there are: how it is called, and after how many seconds one is killed.
ours() {
    local name=$1 kill_after=${2:-} nodes=${#pids[@]} bytes=$((megabytes * 1000000)) lost=0
    local before went had peak limit copies runs output result=same
    reset_peaks
    before=$(cpu) went=$(moved) had=$(blocks)
    ( while :; do runs; sleep 0.2; done >"$work/runs" ) &
    local watcher=$!
    if [ -n "$kill_after" ]; then
        ( sleep "$kill_after"; cpu_of "${pids[2]}" >"$work/lost"; kill -9 "${pids[2]}" ) &
        local killer=$!
    fi
    measure rt sort records --output sorted
    [ ! -s "$work/errors" ] || fail "$name: $(cat "$work/errors")"
    went=$(number '.2f GB' "($(moved) - $went) / 1e9")
    if [ -n "$kill_after" ]; then
        wait "$killer"
        pids=("${pids[@]:0:2}" "${pids[@]:3}")
        lost=$(cat "$work/lost")
    fi
    used=$(number .2f "$used + $(cpu) + $lost - $before")
    kill "$watcher"
    wait "$watcher" 2>/dev/null || true

    peak=$(peaks | tr ' ' '\n' | sort -n | tail -1)
    limit=$((idle + budget * 1048576 / 1000000))
    [ "$peak" -le "$limit" ] || fail "$name: a node took $peak MB of memory, more than $limit MB"
    copies=$((nodes < 3 ? nodes : 3))
    runs=$(greatest "$(number d "$bytes / $nodes")" <"$work/runs")
    output=$(paste <(blocks) <(echo "$had") | awk '{ printf "%.0f\n", $1 - $2 }' | greatest "$(number d "$bytes * $copies / $nodes")")
    if [ -n "$kill_after" ]; then
        # Who takes over has more than its share, and blocks are on the move.
        output=-
    elif [ "$(number d "$runs > 2 || $output > 2")" = 1 ]; then
        fail "$name: a node holds $runs times its share of the runs, and $output times that of the output"
    fi
    [ "$(rt data get sorted | checksum)" = "$wanted" ] || { result=DIFFERS; fail "$name: another result than GNU sort's"; }
    report "$name" "$went" "$peak MB" "$runs" "$output" "$result"
}
# Nodes with the records of a file.
start() {
    start_nodes "$1" --job-memory "${budget}MiB"
    idle=$(peaks | tr ' ' '\n' | sort -n | tail -1)
    rt data put records "$2" >/dev/null
}

echo "$megabytes MB in records of 100 bytes; GNU sort and each node may use $budget MiB. CPU: of all nodes and the command."
echo "Not sorting: CPU beyond that of sorting in memory. Runs, output: the most that a node has of them, in shares."
echo
row "" seconds "CPU s per GB" "of GNU" "not sorting" network memory runs output result
row --- --: --: --: --: --: --: --: --: ---
"$work/plain" make $((megabytes * 1000000)) >"$work/records"
baselines random "$work/records"
for nodes in 1 3 5; do
    start "$nodes" "$work/records"
    ours "$nodes node(s)"
    stop_nodes
done
start 5 "$work/records"
ours "5 nodes, kill -9 in the middle" "$(number .1f "$took / 2")"
stop_nodes
for kind in skewed equal; do
    "$work/plain" "$kind" $((megabytes * 1000000)) >"$work/records"
    if [ "$kind" = skewed ]; then name="90 % of keys equal"; else name="90 % of records equal"; fi
    baselines "$name" "$work/records"
    start 5 "$work/records"
    ours "5 nodes"
    stop_nodes
done
if [ ${#failures[@]} -gt 0 ]; then
    printf '\nFAILED: %s' "${failures[@]}"
    echo
    exit 1
fi
