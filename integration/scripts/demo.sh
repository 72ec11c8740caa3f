#!/bin/bash
# The demo: one pod through the `joey` handler, driven by crictl, each step with
# the time it took. Runs inside the test host.
set -euo pipefail
image=127.0.0.1:5000/busybox:latest
dir=$(mktemp -d)
pod='' container=''
clean() {
    [ -z "$pod" ] || crictl rmp -f "$pod" >/dev/null 2>&1 || true
    rm -rf "$dir"
}
trap clean EXIT

# step TITLE COMMAND...: runs the command, prints its time and what it said.
step() {
    local title=$1 before after
    shift
    before=$(date +%s%N)
    out=$("$@" 2>"$dir/stderr") || { printf '%-26s failed\n%s\n' "$title" "$(cat "$dir/stderr")"; exit 1; }
    after=$(date +%s%N)
    printf '%-26s %6d ms   %s\n' "$title" $(((after - before) / 1000000)) "$(head -n 1 <<<"$out")"
}

cat >"$dir/pod.json" <<'JSON'
{"metadata":{"name":"demo","uid":"demo","namespace":"default","attempt":0},
 "hostname":"demo","log_directory":"/tmp/demo-logs","linux":{}}
JSON
cat >"$dir/container.json" <<JSON
{"metadata":{"name":"web","attempt":0},"image":{"image":"$image"},
 "command":["sh","-c","mkdir -p /www; echo hello from a microVM > /www/index.html; echo serving; exec httpd -f -p 80 -h /www"],
 "log_path":"web.log","linux":{}}
JSON

step 'pull'                      crictl pull "$image"
step 'runp (handler joey)'       crictl runp --runtime joey "$dir/pod.json";                    pod=$out
step 'create'                    crictl create "$pod" "$dir/container.json" "$dir/pod.json";    container=$out
step 'start'                     crictl start "$container"
step 'exec: uname -r in the pod' crictl exec "$container" uname -r
step '      uname -r on the host' uname -r
step 'logs'                      crictl logs "$container"
step 'stats'                     bash -c "crictl stats -o json '$container' | jq -c '.stats[0] | {cpu: .cpu.usageCoreNanoSeconds.value, memory: .memory.workingSetBytes.value}'"
ip=$(crictl inspectp -o json "$pod" | jq -r .status.network.ip)
step "request to $ip"            curl -sS --max-time 10 --retry 20 --retry-connrefused --retry-delay 1 "http://$ip/"
step 'stop'                      crictl stop "$container"
step 'rm'                        crictl rm "$container"
step 'stopp'                     crictl stopp "$pod"
step 'rmp'                       crictl rmp "$pod";                                              pod=''
