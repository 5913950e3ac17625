#!/bin/sh
# Checks the deployment files; needs no root. Closes with "N passed, N failed".
set -u
deploy=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

check() { # what, command...
    what=$1
    shift
    if "$@" >"$work/out" 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $what"
        sed 's/^/    /' "$work/out"
    fi
}

# Programs that do nothing stand in for the real ones, so that this needs no build.
mkdir -p "$work/bin"
for program in pangea-controller pangea-worker pangeactl; do
    printf '#!/bin/sh\n' >"$work/bin/$program"
    chmod +x "$work/bin/$program"
done

verify_units() {
    mkdir -p "$work/units"
    for unit in "$deploy"/systemd/*; do sed "s|/usr/local/bin/|$work/bin/|" "$unit" >"$work/units/${unit##*/}"; done
    # verify prints what it finds and does not always say so by its status.
    out=$(systemd-analyze verify --man=no "$work/units/pangea-controller.service" "$work/units/pangea-worker@0.service" \
        "$work/units/pangea.target" 2>&1 | grep -E 'pangea' || true)
    [ -z "$out" ] || { echo "$out"; return 1; }
}

is_hardened() { # below 2.0
    systemd-analyze security --no-pager --offline=true --threshold=20 "$deploy/systemd/$1"
}

install_and_uninstall() {
    "$deploy/install.sh" --from "$work/bin" --destdir "$work/tree" --prefix /opt/cdn || return 1
    grep -q /opt/cdn/bin/pangea-controller "$work/tree/etc/systemd/system/pangea-controller.service" || return 1
    [ -x "$work/tree/opt/cdn/bin/pangeactl" ] || return 1
    "$deploy/install.sh" --destdir "$work/tree" --prefix /opt/cdn --uninstall || return 1
    left=$(find "$work/tree" -type f | grep -v /etc/pangea/pangea.toml || true)
    [ -z "$left" ] || { echo "left: $left"; return 1; }
}

missing_programs_are_named() {
    "$deploy/install.sh" --from "$work/none" --destdir "$work/tree2" 2>"$work/error" && return 1
    grep -q 'cargo build --release' "$work/error"
}

fake_nic() { # queues, ntuple line
    rm -rf "$work/sys"
    mkdir -p "$work/sys/class/net/eth9/queues" "$work/sys/class/net/eth9/device/msi_irqs"
    queue=0
    while [ "$queue" -lt "$1" ]; do
        mkdir "$work/sys/class/net/eth9/queues/rx-$queue"
        : >"$work/sys/class/net/eth9/device/msi_irqs/$((40 + queue))"
        queue=$((queue + 1))
    done
    printf '#!/bin/sh\necho "%s"\n' "$2" >"$work/ethtool"
    chmod +x "$work/ethtool"
}

nic() { PANGEA_SYS=$work/sys PANGEA_ETHTOOL=$work/ethtool "$deploy/nic-queues.sh" "$@"; }

nic_rules_are_exact() {
    fake_nic 2 'ntuple-filters: off'
    nic eth9 --workers 2 --base 7441 --cpus 2,3 --dry-run >"$work/rules" || return 1
    grep -q 'flow-type udp4 dst-port 7442 action 1 ' "$work/rules" || return 1
    grep -q 'echo 3 > .*/41/smp_affinity_list' "$work/rules"
}

nic_without_queues_or_filters_is_refused() {
    fake_nic 1 'ntuple-filters: off'
    nic eth9 --workers 2 --dry-run 2>"$work/error" && return 1
    grep -q 'ethtool -L eth9 combined 2' "$work/error" || return 1
    fake_nic 2 'ntuple-filters: off [fixed]'
    nic eth9 --workers 2 --dry-run 2>"$work/error" && return 1
    grep -q 'has no ntuple filters' "$work/error" || return 1
    nic eth8 --dry-run 2>"$work/error" && return 1
    grep -q 'no network device eth8' "$work/error"
}

if command -v systemd-analyze >/dev/null; then
    check "units are right" verify_units
    check "pangea-controller.service is hardened" is_hardened pangea-controller.service
    check "pangea-worker@.service is hardened" is_hardened pangea-worker@.service
else
    echo "skipped: there is no systemd-analyze on this machine"
fi
if command -v shellcheck >/dev/null; then
    check "scripts are clean" shellcheck "$deploy"/*.sh "$deploy"/test/*.sh
else
    echo "skipped: there is no shellcheck on this machine"
fi
check "install and uninstall" install_and_uninstall
check "missing programs are named" missing_programs_are_named
check "NIC rules are exact" nic_rules_are_exact
check "a NIC that cannot is refused" nic_without_queues_or_filters_is_refused
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
