#!/usr/bin/env bash
# Builds a static crictl and prints its path, cached by version.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib/common.sh"
. "$here/../lib/cri-tools.sh"

out=$JOEY_CACHE/crictl-$cri_tools_version
[ -x "$out/crictl" ] && { echo "$out/crictl"; exit 0; }

mkdir -p "$JOEY_CACHE"
exec 9>"$JOEY_CACHE/crictl.lock"
flock 9
[ -x "$out/crictl" ] && { echo "$out/crictl"; exit 0; }
log "crictl: building $cri_tools_version (about a minute)"
work=$(mktemp -d "$JOEY_CACHE/crictl-build.XXXXXX")
trap 'rm -rf "$work"' EXIT
cri_tools_source "$work/source"
mkdir "$work/out"
(cd "$work/source" && CGO_ENABLED=0 GOTOOLCHAIN=local go build -mod=readonly -trimpath \
    -ldflags "-s -w -X $cri_tools_module/pkg/version.Version=$cri_tools_version" -o "$work/out/crictl" ./cmd/crictl) >&2
rm -rf "$out" && mv "$work/out" "$out"
echo "$out/crictl"
