#!/usr/bin/env bash
# Builds one of the static programs that run as PID 1 (testhost-init, or
# doorbell-init of the benches) and prints its path.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib/common.sh"
name=${1:?usage: build-init.sh testhost-init|doorbell-init}
triple=x86_64-unknown-linux-gnu
cd "$here/../.."
# The benches' dependencies have no place in it.
RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --profile guest --target "$triple" \
    -p integration --no-default-features --bin "$name" >&2
realpath "${CARGO_TARGET_DIR:-target}/$triple/guest/$name"
