#!/usr/bin/env bash
# Builds what a node needs into target/joey: the host's binaries, the guest kernel
# and the agent's archive.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib/common.sh"
cd "$here/.."
target=${CARGO_TARGET_DIR:-target}
out=$target/joey
mkdir -p "$out"

cargo build --release -p vmm -p shim
# small PACKAGE PROGRAM [RUSTC-OPTION...]: a small static program; its own target keeps its
# flags apart.
small() {
    RUSTFLAGS='-C target-feature=+crt-static' cargo rustc --target x86_64-unknown-linux-gnu \
        --profile guest -p "$1" --bin "$2" -- "${@:3}"
}
# The agent is alone in the guest; the runtime starts sooner without a linker's work, and
# small as it is leaves more memory to its containers (docs/adr/0021).
small guest-agent joey-agent
small runtime joey -C relocation-model=static

# place FROM NAME: copies only what changed, so that later steps see no new file.
place() { cmp -s "$1" "$out/$2" || install -m 755 "$1" "$out/$2"; }
for binary in containerd-shim-joey-v2 joeyctl joey-vmm; do
    place "$target/release/$binary" "$binary"
done
place "$target/x86_64-unknown-linux-gnu/guest/joey" joey
"$here/guest/pack-agent.sh" "$target/x86_64-unknown-linux-gnu/guest/joey-agent" "$out/agent.cpio.new" >/dev/null
place "$out/agent.cpio.new" agent.cpio
rm -f "$out/agent.cpio.new" >/dev/null
kernel=$("$here/kernel/build.sh")
place "$kernel" vmlinux
