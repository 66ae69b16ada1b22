# Images of the static programs, from scratch: nothing in them but the program.
#
#   docker build -t networkdb .                          the agent
#   docker build -t networkdb-client --target client .   diagnosticClient
#   docker build -t networkdb-ssd --target ssd .         ssd
#   docker build -t networkdb-support --target support . networkdb support, with the tools that it asks
#   docker build -t networkdb-datapath --target datapath . the agent, with the program that balances services
#   docker build -t networkdb-e2e --target e2e .         networkdb-test, server and client
#
# BuildKit builds only what a target needs. Without a registry, put the static programs into ./programs and say
# --build-arg PROGRAMS=given: then no other image is asked for but by `support`
# and `datapath`, whose base is SUPPORT_IMAGE.

ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG SUPPORT_IMAGE=debian:bookworm-slim
ARG PROGRAMS=built

FROM ${RUST_IMAGE} AS built
WORKDIR /source
COPY . .
RUN RUSTFLAGS='-C target-feature=+crt-static' CARGO_PROFILE_RELEASE_STRIP=debuginfo cargo build --release --locked --target x86_64-unknown-linux-gnu \
        --bin networkdb --bin networkdb-test --bin diagnosticClient --bin ssd \
    && mkdir -p /programs /empty \
    && cd target/x86_64-unknown-linux-gnu/release && cp networkdb networkdb-test diagnosticClient ssd /programs/

FROM scratch AS given
COPY programs /programs
WORKDIR /empty

FROM ${PROGRAMS} AS programs

# The test service gossips on eth0 and answers on the port that it is given; neither takes rights.
FROM scratch AS e2e
COPY --from=programs /programs/networkdb-test /networkdb-test
USER 65532:65532
ENTRYPOINT ["/networkdb-test"]

FROM scratch AS client
COPY --from=programs /programs/diagnosticClient /diagnosticClient
USER 65532:65532
ENTRYPOINT ["/diagnosticClient"]

# It asks the agent for everything, and takes no rights.
FROM scratch AS ssd
COPY --from=programs /programs/ssd /ssd
USER 65532:65532
ENTRYPOINT ["/ssd"]

# As root: it reads the namespaces and the kernel's tables of the host.
FROM ${SUPPORT_IMAGE} AS support
RUN apt-get update && apt-get install -y --no-install-recommends iproute2 nftables ipvsadm iptables conntrack \
    && rm -rf /var/lib/apt/lists/*
COPY --from=programs /programs/networkdb /usr/local/bin/networkdb
ENTRYPOINT ["networkdb", "support"]

# The agent for --data-path on, as root: services are balanced by way of nft.
FROM ${SUPPORT_IMAGE} AS datapath
RUN apt-get update && apt-get install -y --no-install-recommends nftables \
    && rm -rf /var/lib/apt/lists/*
COPY --from=programs /programs/networkdb /usr/local/bin/networkdb
VOLUME /var/lib/networkdb
ENTRYPOINT ["networkdb"]
CMD ["agent", "--help"]

# With --data-path on it needs root and NET_ADMIN, SYS_ADMIN and NET_RAW (--user 0 --privileged); all else runs as nobody.
FROM scratch AS networkdb
COPY --from=programs /programs/networkdb /networkdb
COPY --from=programs --chown=65532:65532 /empty /var/lib/networkdb
USER 65532:65532
VOLUME /var/lib/networkdb
ENTRYPOINT ["/networkdb"]
CMD ["agent", "--help"]
