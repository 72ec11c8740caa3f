# The source of crictl and critest. To be sourced after common.sh.

cri_tools_module=sigs.k8s.io/cri-tools
# The release that goes with containerd 2.1.
cri_tools_version=v1.34.0
# The module's go.sum pins its dependencies; this pins the module itself.
cri_tools_sum=h1:KqL9EJ+WgHtz1HR1exezm91n+o8O2uMLs/eHzHJHAWw=

# cri_tools_source DIRECTORY: makes DIRECTORY a writable copy of the module.
cri_tools_source() {
    local info
    command -v go >/dev/null || die "crictl and critest are built with Go: install golang (1.24 or newer)"
    info=$(cd "$(dirname "$1")" && GONOSUMDB=$cri_tools_module go mod download -json "$cri_tools_module@$cri_tools_version") ||
        die "cri-tools: $cri_tools_module $cri_tools_version cannot be fetched: $info"
    field() { sed -n "s/^\t\"$1\": \"\(.*\)\",\{0,1\}$/\1/p" <<<"$info"; }
    [ "$(field Sum)" = "$cri_tools_sum" ] ||
        die "cri-tools: $cri_tools_module $cri_tools_version has the checksum $(field Sum), expected $cri_tools_sum"
    cp -r "$(field Dir)" "$1"
    chmod -R u+w "$1"
}

# cri_tools_build PROGRAM KEY PREPARE COMMAND...: builds a static PROGRAM by `go COMMAND...`
# of the module, unless it is in the cache under KEY, and prints its path. Before, PREPARE
# is called with the source's directory.
cri_tools_build() {
    local program=$1 prepare=$3 out=$JOEY_CACHE/$1-$2
    shift 3
    [ -x "$out/$program" ] && { echo "$out/$program"; return; }

    mkdir -p "$JOEY_CACHE"
    exec 9>"$JOEY_CACHE/$program.lock"
    flock 9
    [ -x "$out/$program" ] && { echo "$out/$program"; return; }
    log "$program: building $cri_tools_version (one or two minutes)"
    work=$(mktemp -d "$JOEY_CACHE/$program-build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    cri_tools_source "$work/source"
    "$prepare" "$work/source"
    mkdir "$work/out"
    (cd "$work/source" && CGO_ENABLED=0 GOTOOLCHAIN=local go "$@" -mod=readonly -trimpath \
        -ldflags "-s -w -X $cri_tools_module/pkg/version.Version=$cri_tools_version" \
        -o "$work/out/$program" "./cmd/$program") >&2
    rm -rf "$out" && mv "$work/out" "$out"
    echo "$out/$program"
}
