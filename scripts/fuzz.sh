#!/usr/bin/env bash
# fuzz.sh SECONDS: runs each fuzz target for that long. Needs a nightly toolchain.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib/common.sh"
seconds=${1:?usage: fuzz.sh SECONDS}
cargo +nightly --version >/dev/null 2>&1 || die "cargo fuzz needs a nightly toolchain: rustup toolchain install nightly"
command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
cd "$here/../vmm"
for target in $(cargo +nightly fuzz list); do
    log "fuzz: $target for $seconds s"
    cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -rss_limit_mb=2048
done
