# What benches/words.sh and benches/sort.sh share: nodes of this machine, and what they take. To be sourced in the root
# of the repository.
#
# `work`: a directory that goes with the script. `pids`: the nodes that live. `rt`: the command, beside them.

bin=${ROUNDTABLE_BIN:-target/release/roundtable}
[ -x "$bin" ] || cargo build --release
work=$(mktemp -d)
chmod 700 "$work"
original_tmpdir=${TMPDIR-}
export TMPDIR=$work
pids=()

finish() {
    [ ${#pids[@]} = 0 ] || kill -9 "${pids[@]}" 2>/dev/null || true
    # What a node was writing may come after what was removed.
    until rm -rf "$work" 2>/dev/null; do sleep 0.1; done
}
trap finish EXIT

rt() { "$bin" --runtime-dir "$work/run" "$@"; }

# Starts $1 nodes, with further arguments of `up`; each has a directory of its own for what it keeps.
start_nodes() {
    local count=$1 i
    shift
    for ((i = 0; i < count; i++)); do
        mkdir -p "$work/node$i"
        TMPDIR=$work/node$i "$bin" --runtime-dir "$work/run" up "$@" >"$work/node$i.log" 2>&1 &
        pids+=($!)
        disown
    done
    until rt members --format json 2>/dev/null | grep -q "\"alive\":$count,"; do sleep 0.2; done
}
stop_nodes() {
    kill -9 "${pids[@]}"
    local pid
    for pid in "${pids[@]}"; do
        while [ -e "/proc/$pid" ]; do sleep 0.1; done
    done
    pids=()
    rm -rf "$work/run" "$work"/node*/
}

# User and system time of all nodes that live, in seconds.
cpu() { cpu_of "${pids[@]}"; }
cpu_of() {
    local sum=0 pid
    for pid in "$@"; do
        [ -r "/proc/$pid/stat" ] && sum=$((sum + $(cut -d' ' -f14,15 "/proc/$pid/stat" | tr ' ' '+')))
    done
    awk -v ticks="$sum" -v hz="$(getconf CLK_TCK)" 'BEGIN { printf "%.2f", ticks / hz }'
}
# The most memory that each node that lives has had, in MB, since it was started or this was reset.
peaks() {
    local pid
    for pid in "${pids[@]}"; do
        awk '/VmHWM/ { printf "%d ", $2 * 1024 / 1000000 }' "/proc/$pid/status" 2>/dev/null || true
    done
}
reset_peaks() {
    local pid
    for pid in "${pids[@]}"; do echo 5 >"/proc/$pid/clear_refs"; done
}
# Bytes that went over the network so far: in a namespace of its own, those of the nodes and of the command.
moved() { awk '$1 == "lo:" { print $2 }' /proc/net/dev; }

# Goes on in a network namespace of its own, if this may be had: what it counts is all ours then.
alone() {
    [ "$(id -u)" = 0 ] && [ -z "${BENCH_ALONE:-}" ] && unshare -n true 2>/dev/null || return 0
    trap - EXIT
    rm -rf "$work"
    if [ -n "$original_tmpdir" ]; then TMPDIR=$original_tmpdir; else unset TMPDIR; fi
    BENCH_ALONE=1 exec unshare -n -- bash -c 'ip link set lo up; exec "$@"' _ "$@"
}
