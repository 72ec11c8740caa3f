#!/usr/bin/env bash
# Builds a static crictl and prints its path, cached by version.
set -euo pipefail
. "$(dirname "$0")/../lib/common.sh"

module=sigs.k8s.io/cri-tools
version=v1.34.0
# The module's go.sum pins its dependencies; this pins the module itself.
sum=h1:KqL9EJ+WgHtz1HR1exezm91n+o8O2uMLs/eHzHJHAWw=
out=$JOEY_CACHE/crictl-$version
[ -x "$out/crictl" ] && { echo "$out/crictl"; exit 0; }

mkdir -p "$JOEY_CACHE"
exec 9>"$JOEY_CACHE/crictl.lock"
flock 9
[ -x "$out/crictl" ] && { echo "$out/crictl"; exit 0; }
command -v go >/dev/null || die "crictl is built with Go: install golang (1.24 or newer)"
log "crictl: building $version (about a minute)"
work=$(mktemp -d "$JOEY_CACHE/crictl-build.XXXXXX")
trap 'rm -rf "$work"' EXIT
info=$(cd "$work" && GONOSUMDB=$module go mod download -json "$module@$version") ||
    die "crictl: $module $version cannot be fetched: $info"
field() { sed -n "s/^\t\"$1\": \"\(.*\)\",\{0,1\}$/\1/p" <<<"$info"; }
[ "$(field Sum)" = "$sum" ] || die "crictl: $module $version has the checksum $(field Sum), expected $sum"
cp -r "$(field Dir)" "$work/source"
chmod -R u+w "$work/source"
mkdir "$work/out"
(cd "$work/source" && CGO_ENABLED=0 GOTOOLCHAIN=local go build -mod=readonly -trimpath \
    -ldflags "-s -w -X $module/pkg/version.Version=$version" -o "$work/out/crictl" ./cmd/crictl) >&2
rm -rf "$out" && mv "$work/out" "$out"
echo "$out/crictl"
