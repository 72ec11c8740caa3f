#!/usr/bin/env bash
# Builds the guest kernel (an uncompressed vmlinux) from Debian's
# linux-source-6.12 and guest.config, and prints its path.
#
# The result is cached under a hash of (source version, options, compiler), so a
# second call returns at once; JOEY_CACHE names the cache (default ~/.cache/joey).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib/common.sh"

fragment=$here/guest.config
source_version=$(suite_apt trixie apt-cache policy linux-source-6.12 | awk '/Candidate:/{print $2}')
[ -n "$source_version" ] && [ "$source_version" != "(none)" ] ||
    die "linux-source-6.12 is not in Debian trixie's package list: check apt's sources"
key=$(printf '%s\n' "$source_version" "$(gcc --version | head -1)" "$(cat "$fragment")" | sha256sum | cut -c1-16)
out=$JOEY_CACHE/kernel-$key
if [ -s "$out/vmlinux" ]; then
    echo "$out/vmlinux"
    exit 0
fi

mkdir -p "$JOEY_CACHE"
exec 9>"$JOEY_CACHE/kernel.lock"
flock 9
[ -s "$out/vmlinux" ] && { echo "$out/vmlinux"; exit 0; }

work=$(mktemp -d "$JOEY_CACHE/kernel-build.XXXXXX")
trap 'rm -rf "$work"' EXIT
log "guest kernel: fetching linux-source-6.12 $source_version"
(cd "$work" && suite_apt trixie apt-get download -qq linux-source-6.12) >&2
dpkg-deb -x "$work"/linux-source-6.12_*.deb "$work/deb"
tar -C "$work" -xf "$work/deb/usr/src/linux-source-6.12.tar.xz"
tree=$work/linux-source-6.12

log "guest kernel: building (4 to 8 minutes on 2 cores)"
make -C "$tree" -s tinyconfig >&2
(cd "$tree" && scripts/kconfig/merge_config.sh -m .config "$fragment" >/dev/null)
make -C "$tree" -s olddefconfig >&2

# An option that Kconfig dropped would show up much later as a feature that is
# missing in the guest, so each one is looked for here.
missing=0
while IFS='=' read -r name value; do
    case $name in CONFIG_*) ;; *) continue ;; esac
    if [ "$value" = n ]; then
        grep -q "^$name=" "$tree/.config" && { log "guest kernel: $name is set although guest.config says n"; missing=1; }
    else
        grep -q "^$name=$value\$" "$tree/.config" || { log "guest kernel: $name=$value did not survive olddefconfig"; missing=1; }
    fi
done <"$fragment"
[ "$missing" = 0 ] || die "guest kernel: mend scripts/kernel/guest.config: the options above have unmet dependencies or other names"

make -C "$tree" -s -j"$(nproc)" KBUILD_BUILD_USER=joey KBUILD_BUILD_HOST=joey vmlinux >&2
mkdir -p "$out.new"
objcopy --strip-debug "$tree/vmlinux" "$out.new/vmlinux"
cp "$tree/.config" "$out.new/config"
rm -rf "$out" && mv "$out.new" "$out"
echo "$out/vmlinux"
