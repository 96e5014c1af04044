# The controller and the certificate authorities it trusts; nothing else. No shell, no libc, no loader.
FROM rust:1.89-bookworm AS build
WORKDIR /source
COPY Cargo.toml Cargo.lock ./
COPY src src
# A member of the workspace, which cargo wants to see; nothing of it is built.
COPY tests/testbed tests/testbed
ENV RUSTFLAGS="-C target-feature=+crt-static"
# With a target named, build scripts and macros, which run here, are not linked statically.
RUN cargo build --release --locked --bin chittyconnect-operator --target "$(uname -m)-unknown-linux-gnu" \
 && cp target/*/release/chittyconnect-operator /chittyconnect-operator

FROM scratch
COPY --from=build /chittyconnect-operator /chittyconnect-operator
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
USER 65532:65532
ENTRYPOINT ["/chittyconnect-operator"]
