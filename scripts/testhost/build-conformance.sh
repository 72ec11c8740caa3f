#!/usr/bin/env bash
# Builds the validation suite of OCI runtimes (runtime-tools) and prints the directory
# that holds its programs and what they look for beside them: runtimetest, which they run
# in their containers, and the archive of the containers' root.
#
# Cached by this script, the module and busybox.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib/common.sh"
. "$here/../lib/go-module.sh"
module=github.com/opencontainers/runtime-tools
# The last release is of 2018; this is the main branch at the runtime-spec's 1.3.
version=v0.9.1-0.20251205004911-5e639034dcdc
sum=h1:82NlZLiQEB6Wp+nmASMlkHsEXz3Q0pXJbK7QO6ck5lo=

busybox=$("$here/build-busybox.sh")
key=$({ cat "$0"; echo "$busybox"; } | sha256sum | cut -c1-16)
out=$JOEY_CACHE/conformance-$key
[ -e "$out/runtimetest" ] && { echo "$out"; exit 0; }

exec 9>"$JOEY_CACHE/conformance.lock"
flock 9
[ -e "$out/runtimetest" ] && { echo "$out"; exit 0; }
log "conformance: building $version (half a minute)"
work=$(mktemp -d "$JOEY_CACHE/conformance-build.XXXXXX")
trap 'rm -rf "$work"' EXIT
go_module_source "$module" "$version" "$sum" "$work/source"
mkdir "$work/out"
# One program for each directory of validation, by its name.
(cd "$work/source" && CGO_ENABLED=0 GOTOOLCHAIN=local go build -mod=readonly -trimpath \
    -ldflags '-s -w' -o "$work/out/" ./validation/... ./cmd/runtimetest) >&2

# As the suite's own root: all applets in /bin. Their links are relative, for hooks run
# them from the host. Not packed: tar takes it as it is, and an emulated processor would
# unpack it for each container.
root=$work/root
mkdir -p "$root"/{bin,dev,etc,proc,sys}
install -m 755 "$busybox" "$root/bin/busybox"
"$busybox" --list | grep -vx busybox | while read -r applet; do ln -s busybox "$root/bin/$applet"; done
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
tar --sort=name --mtime=@1700000000 --owner=0 --group=0 --numeric-owner -C "$root" \
    -cf "$work/out/rootfs-amd64.tar.gz" .
rm -rf "$out" && mv "$work/out" "$out"
find "$JOEY_CACHE" -maxdepth 1 -name 'conformance-*' -type d ! -path "$out" -mtime +7 -exec rm -rf {} +
echo "$out"
