FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package walhook

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin walhook
COPY --from=build /src/target/release/walhook /usr/local/bin/walhook
USER walhook
WORKDIR /etc/walhook
EXPOSE 9723
ENTRYPOINT ["walhook"]
CMD ["run"]
