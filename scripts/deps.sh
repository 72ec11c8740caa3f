#!/usr/bin/env bash
# Installs what building and testing joey needs on Debian 12 and is missing. Says
# nothing when all is there.
set -euo pipefail
. "$(dirname "$0")/lib/common.sh"

# command:package, for commands outside what Debian always has.
commands=(
    cc:gcc make:make clang:clang llvm-strip:llvm protoc:protobuf-compiler
    flex:flex bison:bison bc:bc cpio:cpio objcopy:binutils xz:xz-utils zstd:zstd
    qemu-system-x86_64:qemu-system-x86 setpriv:util-linux mkfs.ext4:e2fsprogs
    mkfs.erofs:erofs-utils mmdebstrap:mmdebstrap depmod:kmod setcap:libcap2-bin
    ip:iproute2 tc:iproute2 busybox:busybox-static strace:strace curl:curl git:git realpath:coreutils
)
# file:package, for what is no command.
files=(
    /usr/include/libelf.h:libelf-dev
    /usr/include/openssl/ssl.h:libssl-dev
    /usr/include/seccomp.h:libseccomp-dev
    /usr/include/bpf/bpf_helpers.h:libbpf-dev
    /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
)

missing=()
for entry in "${commands[@]}"; do
    PATH=$PATH:/usr/sbin:/sbin command -v "${entry%%:*}" >/dev/null || missing+=("${entry#*:}")
done
for entry in "${files[@]}"; do
    [ -e "${entry%%:*}" ] || missing+=("${entry#*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null ||
        die "these Debian packages (or your system's equivalents) are missing: ${missing[*]}"
    [ "$(id -u)" = 0 ] || die "missing packages; run as root: apt-get install ${missing[*]}"
    log "installing: ${missing[*]}"
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
fi
command -v cargo >/dev/null || die "no cargo: install Rust 1.95 or newer (https://rustup.rs)"
command -v go >/dev/null || die "no go: install Go 1.24 or newer (https://go.dev/dl); it builds crictl"
