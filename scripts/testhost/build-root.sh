#!/usr/bin/env bash
# Builds the test host's root from Debian SUITE (default forky) and prints the
# directory that holds it:
#   root.erofs   read-only root with containerd, runc, CNI plugins and a registry,
#                and containerd 1.7 with its runc in /opt/containerd-1.7
#   vmlinux      the suite's cloud kernel, unpacked so that it boots at once
#   modules/     what is loaded before the root is mounted, in loading order
#
# The directory is cached under a hash of this script and the package versions;
# JOEY_CACHE names the cache (default ~/.cache/joey).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib/common.sh"
suite=${1:-forky}

# What the tests use. Everything else comes as a dependency.
packages=(containerd runc crun containernetworking-plugins docker-registry
    systemd passwd uidmap criu iptables
    nftables iproute2 kmod mount procps curl strace iputils-ping jq bpftool libcap2-bin erofs-utils e2fsprogs
    virtiofsd attr busybox-static)
# The last Debian suite with containerd 1.7, and what is taken from it.
older=trixie
older_packages=(containerd runc)
# In loading order, after their dependencies; the rest is loaded on demand.
modules=(virtio_blk virtio_net virtio-rng erofs overlay kvm kvm-amd kvm-intel tun)

# Prints the kernel's packages, then every package with its version. apt takes
# seconds for it, so the answer is kept until the lists are new.
resolve() {
    local meta=linux-image-cloud-amd64 kernel part names=()
    kernel=$(suite_apt "$suite" apt-cache depends "$meta" | awk '/Depends: linux-image-[0-9]/{print $2; exit}')
    [ -n "$kernel" ] || die "$meta of Debian $suite names no kernel: check apt's sources"
    # Newer suites split the image into parts, older ones have it in one package.
    for part in base binary modules; do
        suite_apt "$suite" apt-cache show --no-all-versions "linux-$part-${kernel#linux-image-}" >/dev/null 2>&1 &&
            names+=("linux-$part-${kernel#linux-image-}")
    done
    [ ${#names[@]} -gt 0 ] || names=("$kernel")
    echo "${names[*]}"
    suite_apt "$suite" apt-cache policy "${packages[@]}" "${names[@]}" | versions
    suite_apt "$older" apt-cache policy "${older_packages[@]}" | versions
}
versions() { awk '/^[^ ]/{name=$1} /Candidate:/{print name $2}'; }
suite_apt "$suite" true
suite_apt "$older" true
resolved=$JOEY_CACHE/apt/$suite/testhost-root
if [ ! "$resolved" -nt "$JOEY_CACHE/apt/$suite/ready" ] || [ ! "$resolved" -nt "$0" ]; then
    resolve >"$resolved.$$"
    mv "$resolved.$$" "$resolved"
fi
read -ra kernel_packages <"$resolved"
release=${kernel_packages[-1]#linux-*-}

crictl=$("$here/build-crictl.sh")
key=$({ cat "$0" "$resolved"; echo "$crictl"; } | sha256sum | cut -c1-16)
out=$JOEY_CACHE/testhost-$suite-$key
if [ -e "$out/root.erofs" ]; then
    touch "$out"
    echo "$out"
    exit 0
fi

exec 9>"$JOEY_CACHE/testhost-$suite.lock"
flock 9
[ -e "$out/root.erofs" ] && { echo "$out"; exit 0; }
[ "$(id -u)" = 0 ] || die "building the test host's root needs root (mmdebstrap and file ownership)"

log "test host: building its root from Debian $suite (about a minute)"
work=$(mktemp -d "$JOEY_CACHE/testhost-build.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
mmdebstrap --quiet --mode=root --variant=essential \
    --aptopt='Acquire::Check-Valid-Until "false"' \
    --include="$(IFS=,; echo "${packages[*]}")" \
    "$suite" "$root" \
    "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(debian_mirror) $suite main" >&2

mkdir "$work/debs"
(cd "$work/debs" && suite_apt "$suite" apt-get download -qq "${kernel_packages[@]}") >&2
for deb in "$work"/debs/*.deb; do dpkg-deb -x "$deb" "$work/kernel"; done
tree=$work/kernel/usr/lib/modules/$release
[ -d "$tree" ] || tree=$work/kernel/lib/modules/$release
image=$tree/vmlinuz
[ -e "$image" ] || image=$work/kernel/boot/vmlinuz-$release

# Emulated processors would spend seconds on decompression, so it is done here.
find "$tree" -name '*.ko.xz' -print0 | xargs -0 -r -P2 -n64 xz -d
find "$tree" -name '*.ko.zst' -print0 | xargs -0 -r -P2 -n64 zstd -q -d --rm
"$here/unpack-kernel.sh" "$image" >"$work/vmlinux"
mkdir -p "$root/usr/lib/modules"
mv "$tree" "$root/usr/lib/modules/$release"
rm -f "$root/usr/lib/modules/$release"/{vmlinuz,System.map}
depmod -b "$root" "$release"

mkdir "$work/modules"
number=10
declare -A seen
for module in "${modules[@]}"; do
    while read -r verb file _; do
        [ "$verb" = insmod ] && [ -z "${seen[$file]:-}" ] || continue
        seen[$file]=1
        cp "$file" "$work/modules/$number-$(basename "$file")"
        number=$((number + 1))
    done < <(modprobe -d "$root" -S "$release" --show-depends "$module")
done

# Beside the other, to be run in its place: nothing of it but the programs.
mkdir "$work/older"
(cd "$work/older" && suite_apt "$older" apt-get download -qq "${older_packages[@]}") >&2
for deb in "$work"/older/*.deb; do dpkg-deb -x "$deb" "$work/older/tree"; done
mkdir -p "$root/opt/containerd-1.7/bin"
cp "$work"/older/tree/usr/bin/{containerd,containerd-shim-runc-v2,ctr} "$root/opt/containerd-1.7/bin/"
cp "$work"/older/tree/usr/sbin/runc "$root/opt/containerd-1.7/bin/"

rm -rf "$root"/usr/share/{doc,man,locale,info,lintian,bug,perl5} "$root"/var/{cache,lib/apt,log}/*
rm -rf "$root"/usr/sbin/{pidfd-kill,recvtty,sd-helper,remap-rootfs,seccompagent,fs-idmap}
install -m 755 "$crictl" "$root/usr/local/bin/crictl"
rm -f "$root/etc/resolv.conf" "$root/etc/hostname"
: >"$root/etc/resolv.conf"

mkdir "$work/out"
mkfs.erofs --quiet -T0 "$work/out/root.erofs" "$root" >&2
mv "$work/vmlinux" "$work/modules" "$work/out/"
rm -rf "$out" && mv "$work/out" "$out"
# Roots that nobody used for a while.
find "$JOEY_CACHE" -maxdepth 1 -name "testhost-$suite-*" ! -path "$out" -mtime +7 -exec rm -rf {} +
echo "$out"
