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
