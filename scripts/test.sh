#!/usr/bin/env bash
# test.sh all: every test; the end-to-end suite without its bulk with one combination of
# containerd, its ways and what pods run on, and in brief with others; the budgets.
# test.sh matrix: the whole end-to-end suite with each.
#
# Two test hosts run side by side: one keeps one processor busy.
set -euo pipefail
cd "$(dirname "$0")/.."
# What runs in the background ends with us.
trap 'trap - INT TERM; kill 0' INT TERM
ways=(2.1-podsandbox 2.1-shim 1.7-podsandbox
    2.1-joey-runc 2.1-joey-runc-shim 1.7-joey-runc 2.1-runc-joey 1.7-runc-joey)
brief=(2.1-shim 1.7-podsandbox 2.1-joey-runc 2.1-joey-runc-shim 2.1-runc-joey)

# Made before: two cargos would wait for each other.
cargo test --workspace --no-run
if [ "${1:-}" = all ]; then
    cargo build --release -p integration --bin bench --bin testhost
fi
rm -f target/e2e-*.log

# e2e WAY EXTENT: one run, whose output is kept for later.
e2e() {
    JOEY_E2E=$1 JOEY_E2E_EXTENT=$2 cargo test --workspace --test e2e >"target/e2e-$1.log" 2>&1
}
# show WAY...: what they printed.
show() {
    for way in "$@"; do
        # It is not there when one before it failed.
        [ -e "target/e2e-$way.log" ] || continue
        printf '\n== end to end, %s\n' "$way"
        cat "target/e2e-$way.log"
    done
}

case ${1:-} in
all)
    (for way in "${brief[@]}"; do e2e "$way" brief || exit; done) &
    others=$!
    cargo test --workspace &
    suite=$!
    status=0
    # Unlike a command in the foreground, this is interrupted by a signal. The budgets go where
    # one of the two has ended, whichever is the shorter.
    wait -n -p first "$suite" "$others" || status=$?
    target/release/testhost budget >target/budget.log 2>&1 &
    budget=$!
    if [ "$first" = "$suite" ]; then last=$others; else last=$suite; fi
    wait "$last" || status=$?
    wait "$budget" || status=$?
    printf '\n== budgets\n'
    grep -v '^bench: .* round' target/budget.log || true
    show "${brief[@]}"
    exit "$status"
    ;;
matrix)
    export -f e2e
    status=0
    printf '%s\n' "${ways[@]}" | xargs -P 2 -I{} bash -c 'e2e {} whole' &
    wait "$!" || status=$?
    show "${ways[@]}"
    exit "$status"
    ;;
*)
    echo "usage: test.sh all|matrix" >&2
    exit 2
    ;;
esac
