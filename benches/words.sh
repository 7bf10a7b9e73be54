#!/usr/bin/env bash
# Word count on five nodes of this machine, beside a plain program in one process: times, CPU, bytes moved, memory; with
# a node that is killed in the middle; as shipped code; and with nine of ten records the same. Every result is compared.
#   benches/words.sh [MEGABYTES]     1024 unless given; needs about nine times as much room in TMPDIR
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/nodes.bash
megabytes=${1:-1024}
nodes=5
words=$work/words
rustc --edition 2024 -O benches/words.rs -o "$words"

# Counts the words of $1 into $2, by the program $3; prints what it took.
count() {
    local before after
    before=$(cpu)
    rt run "${3:-word-count}" --input "$1" --output "$2" --format json >"$work/summary.json"
    after=$(cpu)
    awk -v before="$before" -v after="$after" 'BEGIN { printf "cpu of nodes that live %.1f s; ", after - before }'
    grep -oE '"(seconds|moved_bytes|tasks|local|ranges|again|second_attempts|pairs|combined_pairs)":[0-9.]+' \
        "$work/summary.json" | tr '\n' ' '
    echo
}
compare() {
    rt data get "$1" "$work/got" >/dev/null
    LC_ALL=C sort "$work/got" | cmp - "$2" && echo "identical to the plain program's result"
    rt data rm "$1" >/dev/null
}

echo "== a text of $megabytes MB"
"$words" make $((megabytes * 1000 * 1000)) >"$work/text"
echo "== plain program"
( TIMEFORMAT='%R s, cpu %U + %S s'; time "$words" count "$work/text" >"$work/wanted" ) 2>&1
LC_ALL=C sort "$work/wanted" -o "$work/wanted"

echo "== five nodes"
start_nodes "$nodes"
rt data put text "$work/text" --format json | grep -oE '"(seconds|blocks)":[0-9.]+' | tr '\n' ' '
echo
count text counts
compare counts "$work/wanted"
seconds=$(grep -oE '"seconds":[0-9.]+' "$work/summary.json" | cut -d: -f2)
echo "peak memory of each node, MB: $(peaks)"

echo "== the same as shipped code"
count text counts tests/data/word_count.wasm
compare counts "$work/wanted"
echo "peak memory of each node, MB: $(peaks)"

echo "== one key of nine in ten records"
"$words" skewed $((megabytes * 1000 * 100)) >"$work/skewed"
"$words" count "$work/skewed" | LC_ALL=C sort >"$work/skewed.wanted"
rt data put skewed "$work/skewed" >/dev/null
count skewed counts
compare counts "$work/skewed.wanted"

echo "== kill -9 of a node in the middle"
( sleep "$(awk -v seconds="$seconds" 'BEGIN { print seconds / 2 }')"; kill -9 "${pids[2]}" ) &
killer=$!
count text counts
wait "$killer"
pids=("${pids[@]:0:2}" "${pids[@]:3}")
compare counts "$work/wanted"
echo "peak memory of each node that lives, MB: $(peaks)"
