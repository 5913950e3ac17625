#!/bin/sh
# Boots a Debian in a container, installs Pangea there and tries what only systemd can show. Needs root, systemd-nspawn
# and a folder with a Debian that has systemd:
#
#   debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus bookworm FOLDER
#   cargo build --release && deploy/test/boot.sh FOLDER
#
# Closes with "N passed, N failed".
# shellcheck disable=SC2016 # what is in single quotes is for the shell inside
set -u
[ $# -eq 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
root=$1
source=$(cd "$(dirname "$0")/../.." && pwd)
passed=0 failed=0

install -d "$root/srv/pangea/target/release" /run/systemd/nspawn/propagate
cp -r "$source/deploy" "$root/srv/pangea/"
cp "$source"/target/release/pangea-controller "$source"/target/release/pangea-worker "$source"/target/release/pangeactl \
    "$root/srv/pangea/target/release/"

systemd-nspawn -D "$root" --boot --private-network --register=no --keep-unit >"$root/boot.log" 2>&1 </dev/null &
container=$!
leader=''
for _ in $(seq 100); do
    leader=$(pgrep -P "$container" || true)
    [ -n "$leader" ] && nsenter -t "$leader" -m test -S /run/systemd/private && break
    sleep 0.1
done
[ -n "$leader" ] || { echo "boot.sh: the container did not start; see $root/boot.log" >&2; exit 1; }
trap 'kill -s RTMIN+4 "$leader"; wait "$container"' EXIT

inside() {
    nsenter -t "$leader" -a env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin setsid -w sh -euc "$1"
}

check() { # what, shell text
    if out=$(inside "$2" 2>&1); then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf 'FAILED: %s\n%s\n' "$1" "$out" | sed '2,$s/^/    /'
    fi
}

# Looks until it is so, for ten seconds at most.
await='await() { for _ in $(seq 100); do if sh -c "$1"; then return 0; fi; sleep 0.1; done; echo "never: $1"; return 1; }'
running="$await; await 'test \$(pangeactl workers --json | grep -c \\\"running\\\") = 2'"

check 'the system is up' "$await; await 'systemctl is-system-running | grep -Eq \"running|degraded\"'"
check 'install and start' "cd /srv/pangea && deploy/install.sh --enable --workers 2 && $running"
check 'put' "head -c 300000000 /dev/urandom >/srv/source; pangeactl put /srv/source >/srv/id"
check 'workers are pinned and have the policy' "
    pangeactl workers --json | tr -d ' \n' | grep -q '\"cpu\":0.*\"revision\":1'"
counted="$await; await 'pangeactl workers --json | tr -d \" \\n\" | grep -q put_bytes.,300000000'"
check 'workers count' "$counted"
check 'a restart of the controller leaves a transfer and the workers alone' '
    before=$(systemctl show -p MainPID --value pangea-worker@0 pangea-worker@1)
    pangeactl get "$(cat /srv/id)" -o - | (sleep 0.5; cat) >/srv/copy & get=$!
    sleep 0.2; systemctl restart pangea-controller; wait $get
    cmp /srv/source /srv/copy
    test "$before" = "$(systemctl show -p MainPID --value pangea-worker@0 pangea-worker@1)"'
check 'the new controller knows the workers and reads their counters' \
    "$running; $counted"
check 'what is killed comes back' "
    kill -9 \$(systemctl show -p MainPID --value pangea-controller pangea-worker@1)
    $running; rm /srv/copy; pangeactl get \"\$(cat /srv/id)\" -o /srv/copy; cmp /srv/source /srv/copy"
check 'the watchdogs are fed' 'sleep 20; test "$(systemctl show -p NRestarts --value pangea-worker@0)" = 0'
check 'nothing failed' 'test -z "$(systemctl --failed --no-legend)"'
check 'uninstall' '
    cd /srv/pangea && deploy/install.sh --uninstall --purge
    ! pgrep pangea-
    test -z "$(find /usr/local /etc -name "*pangea*")"'
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
