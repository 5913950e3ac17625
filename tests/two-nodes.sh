#!/usr/bin/env bash
# Moves MIB of random bytes (64 without it) between two nodes, one at each end of the link that netlab emulates, and says
# what came of it; all of it is gone afterwards. After `cargo build --release`, as root:
#
#   target/release/netlab --rate-mbit 100 --delay-ms 25 --loss-pct 5 -- tests/two-nodes.sh [MIB [KEY=VALUE...]]
#
# KEY=VALUE are of the policy at both ends, such as congestion=cubic or fec.mode=off.
set -euo pipefail

refuse() {
    echo "$0: $1" >&2
    exit 2
}

mib=${1:-64}
case $mib in '' | *[!0-9]* | 0*) refuse "'$mib' is not a number of MiB" ;; esac
shift $(($# > 0 ? 1 : 0))
if [ -z "${NETLAB_A:-}" ] || [ -z "${NETLAB_B:-}" ]; then
    refuse "there is no emulated link: run this as the command of target/release/netlab"
fi
programs=$(cd "$(dirname "$0")/../target/release" && pwd) || refuse "cargo build --release comes first"

folder=$(mktemp -d)
nodes=()
end() {
    kill "${nodes[@]}" 2>/dev/null || true
    wait || true
    rm -rf "$folder"
}
trap end EXIT

policy=()
for assignment in "$@"; do policy+=(--policy "$assignment"); done

# start NAME NAMESPACE ADDRESS
start() {
    ip netns exec "$2" "$programs/pangea-controller" --state-dir "$folder/$1/state" --runtime-dir "$folder/$1/run" \
        --listen "$3:7440" --workers 1 "${policy[@]}" 2>"$folder/$1.log" &
    nodes+=($!)
}
ctl() { "$programs/pangeactl" --runtime-dir "$folder/$1/run" "${@:2}"; }
# Until a command succeeds, a node has ended, or for ten seconds.
await() {
    for _ in $(seq 100); do
        if "$@" >/dev/null 2>&1; then return; fi
        if ! kill -0 "${nodes[@]}" 2>/dev/null; then break; fi
        sleep 0.1 # nothing outside a node shows these events
    done
    cat "$folder"/*.log >&2
    refuse "the nodes do not come up; see above"
}
met() { ctl a status --json | grep -q '"peers_active": *1' && ctl b status --json | grep -q '"peers_active": *1'; }

mkdir "$folder/a" "$folder/b"
start a "$NETLAB_A" "$NETLAB_ADDR_A"
start b "$NETLAB_B" "$NETLAB_ADDR_B"
await ctl a id
await ctl b id
ctl a peer add "$(ctl b id)@$NETLAB_ADDR_B:7440" >/dev/null
ctl b peer add "$(ctl a id)@$NETLAB_ADDR_A:7440" >/dev/null
await met

head -c "${mib}M" /dev/urandom >"$folder/file"
id=$(ctl a put "$folder/file")
ctl b get "$id" -o "$folder/copy" | sed "s|^$folder/||"
cmp "$folder/file" "$folder/copy"
sleep 0.3 # workers publish their figures every 250 ms
ctl b workers
# What was sent as symbols of the code, and what became of it.
for node in a b; do
    figures=$(ctl $node workers --json | grep -A1 -E '"(symbols|requests_by)[a-z_]*"' | grep -v '^--' | tr -d ' \n"' |
        sed 's/,\([0-9]*\)/ \1  /g')
    echo "$node: $figures"
done
