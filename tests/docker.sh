#!/usr/bin/env bash
# Builds the Dockerfile and runs three containers of the image, which must form one swarm through mDNS alone,
# serve a key, answer their health check and hand over when told to stop.
#
# Works without Docker and without a registry: the base images named in FROM are made from Debian's archive and
# from the Rust toolchain of this machine, built with buildah, and run in network namespaces on one bridge.
# Chroot isolation ignores ENTRYPOINT and CMD when a container is run, so those are read from the image first.
# Needs root on Debian 12, and the Rust toolchain. About ten minutes on two cores.
#
#   tests/docker.sh            WORK=/var/tmp/roundtable-docker keeps the base images between runs
set -euo pipefail
cd "$(dirname "$0")/.."

WORK=${WORK:-$(mktemp -d /var/tmp/roundtable-docker.XXXXXX)}
mkdir -p "$WORK"
P=rtd$$ # prefix of this run's namespaces
RUST_IMAGE=$(sed -n 's/^FROM \(rust:[^ ]*\) AS build$/\1/p' Dockerfile)
[ -n "$RUST_IMAGE" ] || { echo "no FROM rust:... in the Dockerfile" >&2; exit 1; }

pids=()
containers=()
B() { buildah --root "$WORK/store" --runroot "$WORK/run" --storage-driver vfs "$@"; }
say() { printf '== %s\n' "$*"; }
clean_up() {
    # Not only what was started here: what runs inside a container outlives the command that started it.
    for i in 1 2 3; do ip netns pids "$P$i" 2>/dev/null | xargs -r kill -KILL 2>/dev/null || true; done
    for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
    for container in "${containers[@]}"; do B rm "$container" >/dev/null 2>&1 || true; done
    for i in 1 2 3; do ip netns del "$P$i" 2>/dev/null || true; done
    ip netns del "${P}sw" 2>/dev/null || true
}
trap clean_up EXIT

say "tools"
command -v buildah >/dev/null && command -v mmdebstrap >/dev/null && command -v ip >/dev/null || {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        buildah mmdebstrap iproute2 ca-certificates
}

say "base images"
if ! B inspect --type image docker.io/library/debian:bookworm-slim >/dev/null 2>&1; then
    mmdebstrap --quiet --variant=minbase --include=ca-certificates bookworm "$WORK/base.tar"
    c=$(B from scratch)
    B add "$c" "$WORK/base.tar" / >/dev/null
    B config --cmd /bin/bash --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$c"
    B commit --rm "$c" docker.io/library/debian:bookworm-slim >/dev/null
fi
if ! B inspect --type image "docker.io/library/$RUST_IMAGE" >/dev/null 2>&1; then
    c=$(B from --pull=never docker.io/library/debian:bookworm-slim)
    B run --isolation chroot "$c" -- sh -c \
        'apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev make'
    mkdir -p "$WORK/rust"
    cp -aL "$(rustc --print sysroot)/." "$WORK/rust/"
    B add "$c" "$WORK/rust" /usr/local/rust >/dev/null
    B config --env PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$c"
    B commit --rm "$c" "docker.io/library/$RUST_IMAGE" >/dev/null
    rm -rf "$WORK/rust"
fi

say "build"
# Chroot isolation shares this machine's network; a registry mirror that cargo is told of here holds there too.
mkdir -p "$WORK/cargo"
for config in config.toml credentials.toml; do
    if [ "$config" = config.toml ] && [ -f "${CARGO_HOME:-$HOME/.cargo}/$config" ]; then
        cp "${CARGO_HOME:-$HOME/.cargo}/$config" "$WORK/cargo/$config"
    fi
done
B bud --isolation chroot --pull=never --layers=false \
    --volume "$WORK/cargo:/root/.cargo" --volume /etc/ssl/certs:/etc/ssl/certs:ro \
    -t roundtable:ci .
config=$(B inspect --type image --format '{{.OCIv1.Config.User}} {{.OCIv1.Config.Entrypoint}} {{.OCIv1.Config.Cmd}} {{.OCIv1.Config.StopSignal}}' localhost/roundtable:ci)
[ "$config" = "roundtable [roundtable] [up --lan] SIGTERM" ] || { echo "unexpected configuration: $config" >&2; exit 1; }

say "three containers on one bridge"
ip netns add "${P}sw"
ip -n "${P}sw" link add br0 type bridge mcast_snooping 0 forward_delay 0
ip -n "${P}sw" link set br0 up
for i in 1 2 3; do
    ip netns add "$P$i"
    ip -n "$P$i" link set lo up
    ip link add eth0 netns "$P$i" type veth peer name "v$i" netns "${P}sw"
    ip -n "${P}sw" link set "v$i" master br0
    ip -n "${P}sw" link set "v$i" up
    ip -n "$P$i" addr add "10.77.0.$i/24" dev eth0
    ip -n "$P$i" link set eth0 up
    ip -n "$P$i" route add default dev eth0
done

# 256 bits that the three share, as a user would hand them over.
SECRET=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
inside() { # inside NUMBER COMMAND...: in the container, as the image's user
    local i=$1
    shift
    ip netns exec "$P$i" buildah --root "$WORK/store" --runroot "$WORK/run" --storage-driver vfs \
        run --isolation chroot --user roundtable \
        --env "ROUNDTABLE_SECRET=$SECRET" --env ROUNDTABLE_RUNTIME_DIR=/run/roundtable \
        "${containers[$((i - 1))]}" -- "$@"
}
eventually() { # eventually COMMAND...: within 20 s
    local deadline=$((SECONDS + 20))
    until "$@" >/dev/null 2>&1; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            echo "not in time: $*" >&2
            for i in 1 2 3; do tail -n 20 "$WORK/node$i.log" >&2 || true; done
            exit 1
        fi
        sleep 0.2
    done
}
for i in 1 2 3; do
    containers+=("$(B from --pull=never localhost/roundtable:ci)")
done
for i in 1 2 3; do
    inside "$i" roundtable up --lan >"$WORK/node$i.log" 2>&1 &
    pids+=($!)
done
alive() { [ "$(inside "$1" roundtable members --format json | sed -n 's/.*"alive":\([0-9]*\).*/\1/p')" = "$2" ]; }
for i in 1 2 3; do eventually alive "$i" 3; done
cat "$WORK/node1.log"

say "a key written in one is read in the others"
inside 1 roundtable put greeting hello
[ "$(inside 2 roundtable get greeting)" = hello ]
[ "$(inside 3 roundtable get greeting)" = hello ]
inside 2 roundtable members

say "health check"
for i in 1 2 3; do eventually inside "$i" roundtable status; done

say "SIGTERM hands over"
node=$(ip netns pids "${P}1" | while read -r pid; do
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = roundtable ]; then echo "$pid"; fi
done | head -n 1)
kill -TERM "$node"
wait "${pids[0]}" || { echo "the node did not end with exit code 0" >&2; exit 1; }
tail -n 3 "$WORK/node1.log"
eventually alive 2 2
[ "$(inside 3 roundtable get greeting)" = hello ]
say "passed"
