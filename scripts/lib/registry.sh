# Lays images out as a registry's storage (the layout of CNCF Distribution), so that
# pulls are real. To be sourced; $work is a directory for temporary files, $storage
# the registry's root (docker/registry/v2 below what it is configured with).

digest() { sha256sum "$1" | cut -d' ' -f1; }

# store FILE: moves it to the registry's blobs and prints its digest.
store() {
    local sum blob
    sum=$(digest "$1")
    blob=$storage/blobs/sha256/${sum:0:2}/$sum
    mkdir -p "$blob"
    mv "$1" "$blob/data"
    echo "$sum"
}

# link FILE DIGEST: how the registry's storage points to a blob.
link() {
    mkdir -p "$(dirname "$1")"
    printf 'sha256:%s' "$2" >"$1"
}

# image NAME[:TAG] CONFIG LAYER...: CONFIG is the OCI config's "config" object, a
# LAYER is DIRECTORY:PACKER with the packer none, gzip or zstd. The manifest's digest
# is left in $manifest.
image() {
    local name=${1%%:*} tag=latest config=$2 layers='' diffs='' layer packer type sum size
    local repository=$storage/repositories/$name
    [ "$name" = "$1" ] || tag=${1#*:}
    shift 2
    for layer in "$@"; do
        packer=${layer##*:}
        tar --sort=name --mtime=@1700000000 --numeric-owner --format=pax \
            --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime \
            --xattrs --xattrs-include='*' -C "${layer%:*}" -cf "$work/layer" .
        diffs+=",\"sha256:$(digest "$work/layer")\""
        type=application/vnd.oci.image.layer.v1.tar
        case $packer in
            none) ;;
            gzip) type+=+gzip; gzip -n9 <"$work/layer" >"$work/packed"; mv "$work/packed" "$work/layer" ;;
            zstd) type+=+zstd; zstd -q -9 <"$work/layer" >"$work/packed"; mv "$work/packed" "$work/layer" ;;
        esac
        size=$(stat -c %s "$work/layer")
        sum=$(store "$work/layer")
        link "$repository/_layers/sha256/$sum/link" "$sum"
        layers+=",{\"mediaType\":\"$type\",\"digest\":\"sha256:$sum\",\"size\":$size}"
    done
    printf '{"architecture":"amd64","os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":[%s]}}' \
        "$config" "${diffs#,}" >"$work/config"
    size=$(stat -c %s "$work/config")
    sum=$(store "$work/config")
    link "$repository/_layers/sha256/$sum/link" "$sum"
    printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%s},"layers":[%s]}' \
        "$sum" "$size" "${layers#,}" >"$work/manifest"
    manifest=$(store "$work/manifest")
    link "$repository/_manifests/revisions/sha256/$manifest/link" "$manifest"
    tag "$name" "$tag" "$manifest"
}

# tag NAME TAG DIGEST: one more name for a manifest of the same repository.
tag() {
    local tags=$storage/repositories/$1/_manifests/tags/$2
    link "$tags/current/link" "$3"
    link "$tags/index/sha256/$3/link" "$3"
}

# The image that containerd's configuration names as the sandbox's.
pause_image() {
    local pause=$work/pause
    mkdir -p "$pause"
    echo 'int pause(void); int main(void) { for (;;) pause(); }' | cc -x c -Os -static -s -o "$pause/pause" -
    image pause '{"Entrypoint":["/pause"]}' "$pause:gzip"
}

# install_busybox BINARY ROOT LINK...: the program with a link for each applet, which
# LINK makes: a command to which the link's path is added.
install_busybox() {
    local binary=$1 root=$2 applet
    shift 2
    install -m 755 "$binary" "$root/bin/busybox"
    "$binary" --list-full | while read -r applet; do
        [ "$applet" = bin/busybox ] || { mkdir -p "$root/$(dirname "$applet")"; "$@" "$root/$applet"; }
    done
}

# A root with the directories that containers expect.
skeleton() {
    mkdir -p "$1"/{bin,dev,etc,home,proc,root,sys,run,usr/bin,usr/sbin,sbin,var/log}
    mkdir -m 1777 "$1/tmp" "$1/var/tmp"
    chmod 700 "$1/root"
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nuser:x:1000:1000:user:/home:/bin/sh\n' >"$1/etc/passwd"
    printf 'root:x:0:\nstaff:x:50:user\nnogroup:x:65534:\nuser:x:1000:\n' >"$1/etc/group"
    echo 'hosts: files dns' >"$1/etc/nsswitch.conf"
}
