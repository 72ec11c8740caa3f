# Shared by the scripts: the cache, messages, and apt for other Debian suites.
JOEY_CACHE=${JOEY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/joey}
export JOEY_CACHE

log() { printf '%s\n' "$*" >&2; }
die() { log "error: $*"; exit 1; }

# The Debian mirror that this machine's apt uses.
debian_mirror() {
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
        grep -m1 '/debian/\?$' || die "apt on this machine has no Debian archive: see /etc/apt/sources.list"
}

# suite_apt SUITE COMMAND...: runs an apt command that sees SUITE alone, from the
# machine's own mirror, without touching the machine's apt configuration.
suite_apt() { private_apt deb "$1" "$JOEY_CACHE/apt/$1" "${@:2}"; }

# suite_apt_source SUITE COMMAND...: the same for the suite's source packages.
suite_apt_source() { private_apt deb-src "$1" "$JOEY_CACHE/apt/$1-src" "${@:2}"; }

private_apt() {
    local kind=$1 suite=$2 root=$3
    shift 3
    if [ ! -e "$root/ready" ] || [ -n "$(find "$root/ready" -mtime +7)" ]; then
        mkdir -p "$root/lists/partial" "$root/cache/archives/partial"
        cat >"$root/sources.list" <<SOURCES
$kind [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(debian_mirror) $suite main
SOURCES
        cat >"$root/apt.conf" <<CONF
Dir::Etc::sourcelist "$root/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$root/lists";
Dir::Cache "$root/cache";
Acquire::Check-Valid-Until "false";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Sandbox::User "root";
CONF
        APT_CONFIG=$root/apt.conf apt-get update -qq >&2
        touch "$root/ready"
    fi
    APT_CONFIG=$root/apt.conf "$@"
}
