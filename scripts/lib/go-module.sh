# Sources of programs that are built with Go. To be sourced after common.sh.

# go_module_source MODULE VERSION SUM DIRECTORY: makes DIRECTORY a writable copy of the
# module. Its go.sum pins its dependencies; SUM pins the module itself.
go_module_source() {
    local module=$1 version=$2 sum=$3 to=$4 info
    command -v go >/dev/null || die "$module is built with Go: install golang (1.24 or newer)"
    info=$(cd "$(dirname "$to")" && GONOSUMDB=$module go mod download -json "$module@$version") ||
        die "$module $version cannot be fetched: $info"
    field() { sed -n "s/^\t\"$1\": \"\(.*\)\",\{0,1\}$/\1/p" <<<"$info"; }
    [ "$(field Sum)" = "$sum" ] ||
        die "$module $version has the checksum $(field Sum), expected $sum"
    cp -r "$(field Dir)" "$to"
    chmod -R u+w "$to"
}
