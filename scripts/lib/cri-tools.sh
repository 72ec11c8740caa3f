# The source of crictl and critest. To be sourced after common.sh.
. "$(dirname "${BASH_SOURCE[0]}")/go-module.sh"

cri_tools_module=sigs.k8s.io/cri-tools
# The release that goes with containerd 2.1.
cri_tools_version=v1.34.0
cri_tools_sum=h1:KqL9EJ+WgHtz1HR1exezm91n+o8O2uMLs/eHzHJHAWw=

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
    go_module_source "$cri_tools_module" "$cri_tools_version" "$cri_tools_sum" "$work/source"
    "$prepare" "$work/source"
    mkdir "$work/out"
    (cd "$work/source" && CGO_ENABLED=0 GOTOOLCHAIN=local go "$@" -mod=readonly -trimpath \
        -ldflags "-s -w -X $cri_tools_module/pkg/version.Version=$cri_tools_version" \
        -o "$work/out/$program" "./cmd/$program") >&2
    rm -rf "$out" && mv "$work/out" "$out"
    echo "$out/$program"
}
