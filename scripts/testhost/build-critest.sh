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

name_the_stand_in() {
    local constants=$1/pkg/validate/consts.go
    [ "$(grep -c "$critest_digest_original" "$constants")" = 1 ] ||
        die "critest: $critest_digest_original does not stand once in consts.go: name the new release's digest in critest-digest.sh"
    sed -i "s/$critest_digest_original/$critest_digest/" "$constants"
}

key=$(cat "$0" "$here"/../lib/{cri-tools,critest-digest}.sh | sha256sum | cut -c1-16)
cri_tools_build critest "$key" name_the_stand_in test -c
