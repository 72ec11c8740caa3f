#!/usr/bin/env bash
# install.sh PREFIX: puts joey on this node (DESTDIR is honoured) and says what is
# left to do. containerd's own configuration is the operator's: it is not touched.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib/common.sh"
prefix=${1:?usage: install.sh PREFIX}
root=${DESTDIR:-}
from=$here/../${CARGO_TARGET_DIR:-target}/joey

install -d "$root$prefix/bin" "$root$prefix/share/joey"
install -m 755 "$from"/{containerd-shim-joey-v2,joeyctl,joey-vmm} "$root$prefix/bin/"
install -m 644 "$from"/{vmlinux,agent.cpio} "$root$prefix/share/joey/"

cat <<TEXT
joey is in $root$prefix. Next:
  1. joeyctl doctor        says whether this node can run it
  2. add the handler to containerd's /etc/containerd/config.toml (version 3) and restart it:
       [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.joey]
         runtime_type = 'io.containerd.joey.v2'
  3. kubectl apply a RuntimeClass whose handler is "joey"
TEXT
