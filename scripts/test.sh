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
ways="2.1-podsandbox 2.1-shim 1.7-podsandbox
    2.1-joey-runc 2.1-joey-runc-shim 1.7-joey-runc 2.1-runc-joey 1.7-runc-joey"
export brief="2.1-shim 1.7-podsandbox 2.1-joey-runc 2.1-joey-runc-shim 2.1-runc-joey"

# Made before: two cargos would wait for each other.
cargo test --workspace --no-run
if [ "${1:-}" = all ]; then
    cargo build --release -p integration --bin bench --bin testhost
fi
rm -f target/{suite,alone,budgets}.log target/e2e-*.log

# e2e WAY EXTENT: one run, whose output is kept for later.
e2e() {
    JOEY_E2E=$1 JOEY_E2E_EXTENT=$2 cargo test --workspace --test e2e >"target/e2e-$1.log" 2>&1
}
whole() { e2e "$1" whole; }

# part NAME: one of four that `all` has, the longest first. The first prints as it goes, what
# the others print is kept for later.
part() {
    case $1 in
    suite) JOEY_E2E_PART=together cargo test --workspace 2>&1 | tee target/suite.log ;;
    brief)
        failed=0
        for way in $brief; do e2e "$way" brief || failed=1; done
        return "$failed"
        ;;
    alone) JOEY_E2E_PART=alone cargo test --workspace --test e2e >target/alone.log 2>&1 ;;
    budgets) target/release/testhost budget >target/budgets.log 2>&1 ;;
    esac
}
export -f e2e whole part

# deal FUNCTION WORD...: calls FUNCTION with each word, two at a time.
deal() {
    # Unlike a command in the foreground, this is interrupted by a signal.
    printf '%s\n' "${@:2}" | xargs -P 2 -I{} bash -euo pipefail -c "$1 {}" &
    wait "$!"
}

# show LOG WHAT: prints what was kept.
show() {
    printf '\n== %s\n' "$2"
    grep -sv '^bench: .* round' "target/$1.log" || true
}

status=0
case ${1:-} in
all)
    deal part suite brief alone budgets || status=$?
    show budgets 'budgets'
    show alone 'end to end, what changes the host'
    ways=$brief
    ;;
matrix)
    deal whole $ways || status=$?
    ;;
*)
    echo "usage: test.sh all|matrix" >&2
    exit 2
    ;;
esac
for way in $ways; do show "e2e-$way" "end to end, $way"; done
if [ "$status" != 0 ]; then
    printf '\n== failed\n'
    grep -sE ' FAILED|TOO MUCH|NOT MEASURED|^error|^testhost: ' target/*.log || true
fi
exit "$status"
