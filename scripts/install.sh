#!/usr/bin/env bash
# Puts joey under /usr/local, where the shim looks for its parts, and says what is
# left to do. DESTDIR is honoured. containerd's own configuration is the operator's:
# it is not touched.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib/common.sh"
prefix=${DESTDIR:-}/usr/local
from=$here/../${CARGO_TARGET_DIR:-target}/joey

install -d "$prefix/bin" "$prefix/share/joey"
install -m 755 "$from"/{containerd-shim-joey-v2,joeyctl,joey-vmm,joey} "$prefix/bin/"
# The same program: by this name its pods run on the host's kernel.
ln -sf containerd-shim-joey-v2 "$prefix/bin/containerd-shim-joey-runc-v2"
install -m 644 "$from"/{vmlinux,agent.cpio} "$prefix/share/joey/"

cat <<TEXT
joey is in $prefix. Next:
  1. joeyctl doctor        says whether this node can run it
  2. add the handler to containerd's /etc/containerd/config.toml (version 3) and restart it:
       [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.joey]
         runtime_type = 'io.containerd.joey.v2'
  3. kubectl apply a RuntimeClass whose handler is "joey"
TEXT
