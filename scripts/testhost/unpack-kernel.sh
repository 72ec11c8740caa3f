#!/usr/bin/env bash
# Prints the ELF kernel that is packed inside the bzImage IMAGE. Direct boot of
# it saves the unpacking, which takes seconds on an emulated processor.
set -euo pipefail
. "$(dirname "$0")/../lib/common.sh"
image=${1:?usage: unpack-kernel.sh IMAGE}
out=$(mktemp)
trap 'rm -f "$out"' EXIT

# try MAGIC COMMAND...: unpacks from each place where MAGIC stands. What follows
# the packed kernel makes the tools complain, so only the result counts.
try() {
    local magic=$1 offset
    shift
    for offset in $(LC_ALL=C grep -aobUP "$magic" "$image" | cut -d: -f1 | grep -ax '[0-9]*'); do
        tail -c "+$((offset + 1))" "$image" | "$@" >"$out" 2>/dev/null || true
        if [ "$(head -c 4 "$out" | od -An -tx1)" = " 7f 45 4c 46" ]; then
            cat "$out"
            exit 0
        fi
    done
}
try '\x28\xb5\x2f\xfd' zstd -dc
try '\xfd7zXZ\x00' xz -dc --single-stream
try '\x1f\x8b\x08' gzip -dc
die "$image holds no kernel packed with zstd, xz or gzip"
