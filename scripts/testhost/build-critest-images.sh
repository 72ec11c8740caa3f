#!/usr/bin/env bash
# Builds stand-ins for the images that critest names, lays them out as a registry's
# storage and prints the path of a read-only disk with it. The real ones are in
# registries that tests must not depend on. docs/critest.md says what each must do.
#
# The disk is cached under a hash of the scripts and the package versions.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib/common.sh"
. "$here/../lib/registry.sh"
. "$here/../lib/critest-digest.sh"
suite=trixie
# The web server with the libraries that it loads.
server=(nginx libc6 libcrypt1 libpcre2-8-0 libssl3t64 libzstd1 zlib1g)

busybox=$("$here/build-busybox.sh")
suite_apt "$suite" true
resolved=$JOEY_CACHE/apt/$suite/critest-images
if [ ! "$resolved" -nt "$JOEY_CACHE/apt/$suite/ready" ] || [ ! "$resolved" -nt "$0" ]; then
    suite_apt "$suite" apt-cache policy "${server[@]}" |
        awk '/^[^ ]/{name=$1} /Candidate:/{print name $2}' >"$resolved.$$"
    mv "$resolved.$$" "$resolved"
fi
key=$({ cat "$0" "$here"/../lib/{registry,critest-digest}.sh "$resolved"; echo "$busybox"; } | sha256sum | cut -c1-16)
out=$JOEY_CACHE/critest-images-$key
if [ -e "$out/images.erofs" ]; then
    touch "$out"
    echo "$out/images.erofs"
    exit 0
fi

exec 9>"$JOEY_CACHE/critest-images.lock"
flock 9
[ -e "$out/images.erofs" ] && { echo "$out/images.erofs"; exit 0; }
[ "$(id -u)" = 0 ] || die "building critest's images needs root (file ownership and a setuid file)"
log "critest's images: building"
work=$(mktemp -d "$JOEY_CACHE/critest-images-build.XXXXXX")
trap 'rm -rf "$work"' EXIT
storage=$work/storage/docker/registry/v2
path=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# The path below registry.k8s.io and below gcr.io.
e2e=e2e-test-images
cri_tools=k8s-staging-cri-tools

# A busybox with the users that the official image has, and its hard links: what lies
# in the path of one applet can be hidden without the others.
base=$work/busybox
skeleton "$base"
install_busybox "$busybox" "$base" ln -f "$base/bin/busybox"
cat >"$base/etc/passwd" <<'PASSWD'
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
sys:x:3:3:sys:/dev:/bin/false
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
operator:x:37:37:Operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
PASSWD
cat >"$base/etc/group" <<'GROUP'
root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
mail:x:8:
wheel:x:10:root
www-data:x:33:
operator:x:37:
users:x:100:
nogroup:x:65534:
GROUP

# config MORE: an image's configuration: MORE with the path.
config() { printf '{"Env":["%s"],%s}' "$path" "$1"; }
shell='"Cmd":["sh"]'

pause_image
image "$e2e/busybox:1.29-2" "$(config "$shell")" "$base:gzip"

# Images that must differ have a file with their name in it.
named() {
    mkdir -m 755 "$work/$1"
    install -m 644 /dev/null "$work/$1/$1"
}
for name in test-image-1 test-image-2 test-image-3 test-image-latest; do
    named "$name"
    image "$cri_tools/$name" "$(config "$shell")" "$base:gzip" "$work/$name:gzip"
done
for tag in test all; do
    named "test-image-tag-$tag"
    image "$cri_tools/test-image-tag:$tag" "$(config "$shell")" "$base:gzip" "$work/test-image-tag-$tag:gzip"
done
named test-image-tags
image "$cri_tools/test-image-tags:1" "$(config "$shell")" "$base:gzip" "$work/test-image-tags:gzip"
tag "$cri_tools/test-image-tags" 2 "$manifest"
tag "$cri_tools/test-image-tags" 3 "$manifest"

# Made of what no package changes and not compressed: its digest stands in critest.
named test-image-digest
image "$cri_tools/test-image-digest" "$(config "$shell")" "$work/test-image-digest:none"
[ "$manifest" = "$critest_digest" ] ||
    die "critest's images: test-image-digest has the digest $manifest: name it in scripts/lib/critest-digest.sh"

# user NAME USER: an image with a user in its configuration.
user() {
    named "$1"
    image "$cri_tools/$1" "$(config "\"User\":\"$2\",$shell")" "$base:gzip" "$work/$1:gzip"
}
user test-image-user-uid 1002
user test-image-user-username www-data
user test-image-user-uid-group 1003:1004
user test-image-user-username-group www-data:1004

groups=$work/groups
mkdir -p "$groups/etc"
{ cat "$base/etc/passwd"; echo 'default-user:x:1000:1000::/home/default-user:/bin/sh'; } >"$groups/etc/passwd"
{ cat "$base/etc/group"; printf 'default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n'; } >"$groups/etc/group"
image "$cri_tools/test-image-predefined-group" "$(config "\"User\":\"1000\",$shell")" "$base:gzip" "$groups:gzip"

# The program of nonewprivs prints the user that it has got from its setuid bit.
nnp=$work/nnp
mkdir "$nnp"
echo '#include <stdio.h>
#include <unistd.h>
int main(void) { printf("Effective uid: %d\n", geteuid()); return 0; }' | cc -x c -Os -static -s -o "$nnp/nnp" -
chmod 4755 "$nnp/nnp"
image "$e2e/nonewprivs:1.3" "$(config '"Entrypoint":["/nnp"]')" "$base:gzip" "$nnp:gzip"

# A web server that says its name in its log, and its shell.
httpd=$work/httpd
mkdir -p "$httpd/var/www"
echo '<html><body>It works!</body></html>' >"$httpd/var/www/index.html"
image "$e2e/httpd:2.4.39-4" \
    "$(config '"Cmd":["sh","-c","echo httpd: serving port 80; exec httpd -f -v -p 80 -h /var/www"]')" "$base:gzip" "$httpd:gzip"

# nginx is looked at from outside: its pid file, its processes' titles.
nginx=$work/nginx
mkdir -p "$work/debs" "$nginx"/{etc/nginx,usr/share/nginx/html,var/lib/nginx,var/log/nginx,run}
(cd "$work/debs" && suite_apt "$suite" apt-get download -qq "${server[@]}") >&2
for deb in "$work"/debs/*.deb; do dpkg-deb -x "$deb" "$work/server"; done
mkdir -p "$nginx/usr/sbin"
cp -a "$work/server/usr/sbin/nginx" "$nginx/usr/sbin/"
cp -a "$work/server/usr/lib" "$work/server/usr/lib64" "$nginx/usr/"
rm -rf "$nginx"/usr/lib/{systemd,x86_64-linux-gnu/gconv,x86_64-linux-gnu/audit,x86_64-linux-gnu/perl5}
ln -s usr/lib "$nginx/lib"
ln -s usr/lib64 "$nginx/lib64"
ln -s ../run "$nginx/var/run"
cp "$httpd/var/www/index.html" "$nginx/usr/share/nginx/html/"
# nginx_config DIRECTORY PORT
nginx_config() {
    mkdir -p "$1/etc/nginx"
    cat >"$1/etc/nginx/nginx.conf" <<CONF
user nobody nogroup;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 64; }
http {
    access_log /dev/stdout;
    server {
        listen $2;
        root /usr/share/nginx/html;
    }
}
CONF
}
nginx_config "$nginx" 80
run='"Cmd":["nginx","-g","daemon off;"]'
image "$e2e/nginx:1.14-2" "$(config "$run")" "$base:gzip" "$nginx:gzip"
nginx_config "$work/hostnet" 12003
image "$cri_tools/hostnet-nginx-amd64" "$(config "$run")" "$base:gzip" "$nginx:gzip" "$work/hostnet:gzip"

mkdir "$work/out"
mkfs.erofs --quiet -T0 "$work/out/images.erofs" "$work/storage" >&2
rm -rf "$out" && mv "$work/out" "$out"
find "$JOEY_CACHE" -maxdepth 1 -name 'critest-images-*' -type d ! -path "$out" -mtime +7 -exec rm -rf {} +
echo "$out/images.erofs"
