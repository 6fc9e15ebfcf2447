FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package walhook && sh scripts/split-debug target/release/walhook
RUN mkdir -p -m 0700 /cache/walhook

# The lines of a backtrace: docker build --target debug --output . .
FROM scratch AS debug
COPY --from=build /src/target/release/walhook.debug /walhook.debug

# The C library, CA certificates and a user without rights; no shell.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/walhook /usr/local/bin/walhook
# For large transactions that are still open (source.spool); mount a volume here where the root is read-only.
COPY --from=build --chown=65532:65532 /cache /var/cache
# By number, so that an orchestrator can see that it is not root.
USER 65532:65532
WORKDIR /etc/walhook
# The admin server within the container's own network: what is published of it is the orchestrator's decision.
ENV WALHOOK_ADMIN__LISTEN=0.0.0.0:9723 WALHOOK_SOURCE__SPOOL=/var/cache/walhook
EXPOSE 9723
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["walhook", "health"]
ENTRYPOINT ["walhook"]
CMD ["run"]
