#!/usr/bin/env bash
# Builds the images that the tests run and lays them out as a registry's storage,
# so that pulls from the test host's registry are real. Prints the path of a
# read-only disk that holds
#   pause    one static program that waits
#   busybox  Debian's static busybox with a link for each applet
#   debian   about 100 MB in three layers, packed in three ways, with all that a
#            layer can hold: see `base`, `changes` and `removals`
#
# The disk is cached under a hash of this script and the package versions.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib/common.sh"
. "$here/../lib/registry.sh"
suite=trixie

suite_apt "$suite" true
resolved=$JOEY_CACHE/apt/$suite/testhost-images
if [ ! "$resolved" -nt "$JOEY_CACHE/apt/$suite/ready" ] || [ ! "$resolved" -nt "$0" ]; then
    suite_apt "$suite" apt-cache policy busybox-static base-files libc6 |
        awk '/^[^ ]/{name=$1} /Candidate:/{print name $2}' >"$resolved.$$"
    mv "$resolved.$$" "$resolved"
fi
key=$(cat "$0" "$here/../lib/registry.sh" "$resolved" | sha256sum | cut -c1-16)
out=$JOEY_CACHE/images-$key
if [ -e "$out/images.erofs" ]; then
    touch "$out"
    echo "$out/images.erofs"
    exit 0
fi

exec 9>"$JOEY_CACHE/images.lock"
flock 9
[ -e "$out/images.erofs" ] && { echo "$out/images.erofs"; exit 0; }
[ "$(id -u)" = 0 ] || die "building the test images needs root (file ownership and capabilities)"
log "test images: building (about a minute)"
work=$(mktemp -d "$JOEY_CACHE/images-build.XXXXXX")
trap 'rm -rf "$work"' EXIT
storage=$work/storage/docker/registry/v2
path=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

mkdir "$work/debs"
(cd "$work/debs" && suite_apt "$suite" apt-get download -qq busybox-static) >&2
dpkg-deb -x "$work"/debs/busybox-static_*.deb "$work/busybox-deb"
binary=$(find "$work/busybox-deb" -type f -name busybox -path '*bin/*')

pause_image

busybox=$work/busybox
skeleton "$busybox"
install_busybox "$binary" "$busybox" ln -sf /bin/busybox
image busybox "{\"Env\":[\"$path\"],\"Cmd\":[\"sh\"]}" "$busybox:gzip"

# The first layer: a Debian, and what the next layers change or remove.
base=$work/base
mmdebstrap --quiet --mode=root --variant=essential \
    --aptopt='Acquire::Check-Valid-Until "false"' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    "$suite" "$base" \
    "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(debian_mirror) $suite main" >&2
rm -rf "$base"/dev "$base"/var/{cache/*,lib/apt/lists/*,log/*}
mkdir "$base/dev"
rm -f "$base"/etc/{resolv.conf,hostname,hosts}
mkdir -p "$base"/opt/{opaque/below,removed/tree,becomes-file,keeps}
echo old >"$base/opt/opaque/old"
echo old >"$base/opt/opaque/below/old"
echo old >"$base/opt/removed/tree/file"
echo old >"$base/opt/replaced"
echo old >"$base/opt/becomes-directory"
echo old >"$base/opt/removed-file"
ln -s keeps "$base/opt/becomes-directory-link"
head -c 8388608 /dev/zero | tr '\0' 'j' >"$base/opt/eight-megabytes"

# The second layer: every kind of entry, an opaque directory, a replaced file.
changes=$work/changes
mkdir -p "$changes"/opt/{opaque,kinds}
: >"$changes/opt/opaque/.wh..wh..opq"
echo new >"$changes/opt/opaque/new"
echo new >"$changes/opt/replaced"
: >"$changes/opt/.wh.becomes-file"
kinds=$changes/opt/kinds
echo linked >"$kinds/one"
ln "$kinds/one" "$kinds/two"
ln "$kinds/one" "$kinds/three"
ln -s one "$kinds/relative"
ln -s /opt/kinds/one "$kinds/absolute"
ln -s /nowhere "$kinds/dangling"
ln -s "$(printf 'x%.0s' {1..200})" "$kinds/long-link"
install -m 4755 "$binary" "$kinds/setuid"
install -m 2750 -o 70000 -g 70001 /dev/null "$kinds/setgid-of-others"
install -m 755 "$binary" "$kinds/capable"
setcap cap_net_raw,cap_net_bind_service+ep "$kinds/capable"
mkfifo -m 640 "$kinds/fifo"
mknod -m 600 "$kinds/null" c 1 3
mkdir -m 3777 "$kinds/sticky"
mkdir -m 0 "$kinds/closed"
: >"$kinds/empty"
truncate -s 1M "$kinds/sparse"
echo name >"$kinds/$(printf 'n%.0s' {1..255})"
echo name >"$kinds/ümlaut and space"
echo name >"$kinds/$(printf 'new\nline')"
deep=$kinds
for _ in {1..12}; do deep=$deep/$(printf 'd%.0s' {1..60}); done
mkdir -p "$deep"
echo deep >"$deep/file"

# The third layer: removals, and entries that change their type.
removals=$work/removals
mkdir -p "$removals"/opt/becomes-directory
: >"$removals/opt/.wh.removed"
: >"$removals/opt/.wh.removed-file"
: >"$removals/opt/.wh.keeps"
echo new >"$removals/opt/becomes-file"
echo new >"$removals/opt/becomes-directory/file"
mkdir "$removals/opt/becomes-directory-link"
echo new >"$removals/opt/becomes-directory-link/file"
image debian "{\"Env\":[\"$path\",\"LANG=C.UTF-8\"],\"Cmd\":[\"bash\"],\"Labels\":{\"test\":\"joey\"}}" \
    "$base:none" "$changes:gzip" "$removals:zstd"

mkdir "$work/out"
mkfs.erofs --quiet -T0 "$work/out/images.erofs" "$work/storage" >&2
rm -rf "$out" && mv "$work/out" "$out"
find "$JOEY_CACHE" -maxdepth 1 -name 'images-*' -type d ! -path "$out" -mtime +7 -exec rm -rf {} +
echo "$out/images.erofs"
