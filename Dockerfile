# A node of a swarm in a container. Two stages: the compiler stays behind.
#
#   docker build -t roundtable .
#   docker run --rm -it roundtable                                 # `up --lan`; prints the line to join with
#   docker run --rm -it roundtable up --join rt1...
#   docker run --rm roundtable get greeting --join rt1...
#
# Nodes on one bridge network find each other by multicast DNS if they share a secret (ROUNDTABLE_SECRET or
# --secret-file). `docker stop` lets a node hand over what it holds; give it time with `--stop-timeout 60`.

FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY src src
# Not built, but the manifest names it.
COPY benches benches
# The allocator must know the largest page of the machines that it runs on: on arm64 64 KiB, whatever it is built on.
RUN if [ "$(uname -m)" = aarch64 ]; then export JEMALLOC_SYS_WITH_LG_PAGE=16; fi \
    && cargo build --release --locked --bin roundtable && strip target/release/roundtable

FROM debian:bookworm-slim
RUN useradd --system --no-create-home --uid 10001 roundtable \
    && install -d -o roundtable -g roundtable -m 0700 /run/roundtable
COPY --from=build /build/target/release/roundtable /usr/local/bin/roundtable
USER roundtable
# Where the commands in the container (`docker exec ... roundtable members`) find its node.
ENV ROUNDTABLE_RUNTIME_DIR=/run/roundtable
# Peers connect here; mDNS is 5353/udp, multicast.
EXPOSE 7400/tcp 5353/udp
# Asks for the node to hand over what it holds.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s \
    CMD roundtable status --timeout 3s >/dev/null || exit 1
ENTRYPOINT ["roundtable"]
CMD ["up", "--lan"]
