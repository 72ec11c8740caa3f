#!/usr/bin/env bash
# pack-agent.sh AGENT OUT: the guest's initramfs, with the agent as /init and the
# console that the kernel opens for it. The same agent always gives the same
# bytes, and no root is needed: the archive's headers are written here.
set -euo pipefail
. "$(dirname "$0")/../lib/common.sh"
agent=${1:?usage: pack-agent.sh AGENT OUT} out=${2:?usage: pack-agent.sh AGENT OUT}
[ -s "$agent" ] || die "$agent does not exist: build guest-agent first (scripts/build.sh does)"
inode=0

# entry NAME MODE [FILE [MAJOR MINOR]]: one entry in cpio's "newc" format.
entry() {
    local name=$1 mode=$2 file=${3:-} major=${4:-0} minor=${5:-0} size=0
    inode=$((inode + 1))
    [ -z "$file" ] || size=$(stat -c %s "$file")
    # inode mode uid gid links mtime size device(2) node(2) name-length checksum
    printf 070701
    printf '%08x' "$inode" "$((8#$mode))" 0 0 1 0 "$size" 0 0 "$major" "$minor" "$((${#name} + 1))" 0
    printf '%s\0' "$name"
    pad $((110 + ${#name} + 1))
    [ -z "$file" ] || { cat "$file"; pad "$size"; }
}
pad() { head -c $((-$1 & 3)) /dev/zero; }

{
    entry dev 040755
    entry dev/console 020600 '' 5 1
    entry init 100755 "$agent"
    entry TRAILER!!! 0
} >"$out"
realpath "$out"
