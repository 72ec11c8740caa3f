#!/usr/bin/env bash
# Builds a static crictl and prints its path, cached by version.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib/common.sh"
. "$here/../lib/cri-tools.sh"

cri_tools_build crictl "$cri_tools_version" true build
