#!/usr/bin/env bash
# Builds a static critest of the release that crictl has, and prints its path, cached
# by version and by this script.
#
# One constant of its source is replaced: the digest of the image that is pulled by
# digest. The original cannot be had without its registry; its stand-in has another
# content and so another digest (see build-critest-images.sh).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib/common.sh"
. "$here/../lib/cri-tools.sh"
. "$here/../lib/critest-digest.sh"

out=$JOEY_CACHE/critest-$(cat "$0" "$here"/../lib/{cri-tools,critest-digest}.sh | sha256sum | cut -c1-16)
[ -x "$out/critest" ] && { echo "$out/critest"; exit 0; }

mkdir -p "$JOEY_CACHE"
exec 9>"$JOEY_CACHE/critest.lock"
flock 9
[ -x "$out/critest" ] && { echo "$out/critest"; exit 0; }
log "critest: building $cri_tools_version (about two minutes)"
work=$(mktemp -d "$JOEY_CACHE/critest-build.XXXXXX")
trap 'rm -rf "$work"' EXIT
cri_tools_source "$work/source"
constants=$work/source/pkg/validate/consts.go
[ "$(grep -c "$critest_digest_original" "$constants")" = 1 ] ||
    die "critest: $critest_digest_original does not stand once in consts.go: name the new release's digest in critest-digest.sh"
sed -i "s/$critest_digest_original/$critest_digest/" "$constants"
mkdir "$work/out"
(cd "$work/source" && CGO_ENABLED=0 GOTOOLCHAIN=local go test -c -mod=readonly -trimpath \
    -ldflags "-s -w -X $cri_tools_module/pkg/version.Version=$cri_tools_version" \
    -o "$work/out/critest" ./cmd/critest) >&2
rm -rf "$out" && mv "$work/out" "$out"
echo "$out/critest"
