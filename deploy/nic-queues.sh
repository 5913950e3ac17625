#!/bin/sh
# Steers each worker's UDP port to its own NIC queue, and that queue's interrupt to the worker's CPU:
# port base+i -> RX queue i -> CPU i. Needs a NIC with ntuple filters (ethtool -k DEV | grep ntuple).
set -eu

usage() {
    cat <<'END'
Usage: deploy/nic-queues.sh DEV [--base PORT] [--workers N] [--cpus LIST] [--dry-run] [--undo]

  DEV            network device, such as eth0
  --base PORT    UDP port of worker 0 [default: 7441]
  --workers N    workers, and queues needed [default: number of CPUs]
  --cpus LIST    CPU of worker 0, 1, ... such as 2,3 [default: 0,1,...]; as in policy workers.cpus
  --dry-run      print the commands instead of running them
  --undo         remove the rules

Example: deploy/nic-queues.sh eth0 --workers 4 --dry-run
END
}

fail() { echo "nic-queues.sh: $*" >&2; exit 1; }

device='' base=7441 workers='' cpus='' dry=no undo=no
while [ $# -gt 0 ]; do
    case $1 in
    --base | --workers | --cpus)
        [ $# -ge 2 ] || { echo "nic-queues.sh: $1 needs a value" >&2; exit 2; }
        case $1 in --base) base=$2 ;; --workers) workers=$2 ;; --cpus) cpus=$2 ;; esac
        shift
        ;;
    --dry-run) dry=yes ;;
    --undo) undo=yes ;;
    -h | --help) usage; exit 0 ;;
    -*) echo "nic-queues.sh: unknown option $1; see --help" >&2; exit 2 ;;
    *) device=$1 ;;
    esac
    shift
done
[ -n "$device" ] || { usage >&2; exit 2; }
workers=${workers:-$(nproc)}
# Tests put a make-believe system in place of the real one.
sys=${PANGEA_SYS:-/sys} ethtool=${PANGEA_ETHTOOL:-ethtool} irqs=${PANGEA_IRQS:-/proc/irq}
for number in "$base" "$workers"; do
    case $number in '' | *[!0-9]*) fail "$number is not a number" ;; esac
done
[ -d "$sys/class/net/$device" ] || fail "there is no network device $device; see: ip link"
command -v "$ethtool" >/dev/null || fail "ethtool is not installed; run: apt-get install ethtool"

run() {
    if [ "$dry" = yes ]; then echo "$*"; else "$@"; fi
}

cpu_of() {
    if [ -z "$cpus" ]; then echo "$1"; else echo "$cpus" | cut -d, -f"$(($1 + 1))"; fi
}

# Rules get fixed places, high in the table, so that they can be found and removed again.
location() { echo $((1000 + $1 * 2)); }

if "$ethtool" -k "$device" | grep -q '^ntuple-filters: off \[fixed\]'; then
    fail "$device has no ntuple filters; use a NIC that has, or leave steering to the kernel (RSS)"
fi

queues=$(find "$sys/class/net/$device/queues" -maxdepth 1 -name 'rx-*' | wc -l)
[ "$queues" -ge "$workers" ] ||
    fail "$device has $queues RX queues for $workers workers; try: ethtool -L $device combined $workers"

if [ "$undo" = yes ]; then
    index=0
    while [ "$index" -lt "$workers" ]; do
        run "$ethtool" -N "$device" delete "$(location "$index")" || true
        run "$ethtool" -N "$device" delete $(($(location "$index") + 1)) || true
        index=$((index + 1))
    done
    exit 0
fi

run "$ethtool" -K "$device" ntuple on
printf '%-8s %-5s %-6s %-6s %s\n' WORKER CPU PORT QUEUE IRQ >&2
index=0
while [ "$index" -lt "$workers" ]; do
    cpu=$(cpu_of "$index")
    [ -n "$cpu" ] || fail "--cpus $cpus names too few CPUs for $workers workers"
    port=$((base + index))
    run "$ethtool" -N "$device" flow-type udp4 dst-port "$port" action "$index" loc "$(location "$index")"
    run "$ethtool" -N "$device" flow-type udp6 dst-port "$port" action "$index" loc $(($(location "$index") + 1))
    irq=$(find "$sys/class/net/$device/device/msi_irqs" -mindepth 1 -maxdepth 1 2>/dev/null |
        sed 's|.*/||' | sort -n | sed -n "$((index + 1))p")
    if [ -n "$irq" ]; then
        if [ "$dry" = yes ]; then
            echo "echo $cpu > $irqs/$irq/smp_affinity_list"
        else
            echo "$cpu" >"$irqs/$irq/smp_affinity_list"
        fi
    fi
    printf '%-8s %-5s %-6s %-6s %s\n' "$index" "$cpu" "$port" "$index" "${irq:--}" >&2
    index=$((index + 1))
done
