#!/usr/bin/env bash
# Builds a static busybox from Debian's source with upstream's own configuration, as
# the busybox image of the registries is, and prints its path. Debian's package lacks
# applets (pgrep, ipcs), and its shell runs applets whatever lies in their paths.
#
# Cached by version and compiler.
set -euo pipefail
. "$(dirname "$0")/../lib/common.sh"
suite=trixie

version=$(suite_apt_source "$suite" apt-cache showsrc busybox | awk '/^Version:/{print $2; exit}')
[ -n "$version" ] || die "Debian $suite names no source of busybox: check apt's sources"
key=$(cat "$0" <(echo "$version" && cc --version | head -1) | sha256sum | cut -c1-16)
out=$JOEY_CACHE/busybox-$key
[ -x "$out/busybox" ] && { echo "$out/busybox"; exit 0; }

exec 9>"$JOEY_CACHE/busybox.lock"
flock 9
[ -x "$out/busybox" ] && { echo "$out/busybox"; exit 0; }
log "busybox: building $version (about a minute)"
work=$(mktemp -d "$JOEY_CACHE/busybox-build.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/tree" "$work/out"
(cd "$work" && suite_apt_source "$suite" apt-get source --download-only -qq busybox) >&2
tar -C "$work/tree" --strip-components=1 -xf "$work"/busybox_*.orig.tar.*
cd "$work/tree"
quietly() { "$@" >"$work/log" 2>&1 || { tail -n 30 "$work/log" >&2; die "busybox: $* failed"; }; }
quietly make -s defconfig
# tc uses a scheduler that newer kernel headers no longer have.
sed -i 's/^# CONFIG_STATIC is not set/CONFIG_STATIC=y/; s/^CONFIG_TC=y/# CONFIG_TC is not set/' .config
quietly make -s silentoldconfig
quietly make -s -j"$(nproc)" busybox
install -m 755 busybox "$work/out/busybox"
rm -rf "$out" && mv "$work/out" "$out"
echo "$out/busybox"
