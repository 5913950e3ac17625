#!/bin/sh
# Installs or uninstalls Pangea under systemd. Run from the project's folder after: cargo build --release
set -eu

usage() {
    cat <<'END'
Usage: deploy/install.sh [--prefix DIR] [--destdir DIR] [--from DIR] [--workers N] [--enable] [--dry-run]
       deploy/install.sh --uninstall [--prefix DIR] [--destdir DIR] [--purge] [--dry-run]

  --prefix DIR    where programs go [default: /usr/local]
  --destdir DIR   put everything below DIR instead of / (for packaging and tests)
  --from DIR      where the built programs are [default: target/release]
  --workers N     workers that --enable enables [default: number of CPUs]
  --enable        create the user and folders, enable and start pangea.target
  --uninstall     remove exactly what was installed; configuration and data stay
  --purge         with --uninstall: remove /etc/pangea and /var/lib/pangea too
  --dry-run       print what would be done
END
}

prefix=/usr/local destdir='' from='' workers='' enable=no uninstall=no purge=no dry=no
while [ $# -gt 0 ]; do
    case $1 in
    --prefix | --destdir | --from | --workers)
        [ $# -ge 2 ] || { echo "install.sh: $1 needs a value" >&2; exit 2; }
        case $1 in
        --prefix) prefix=$2 ;;
        --destdir) destdir=$2 ;;
        --from) from=$2 ;;
        --workers) workers=$2 ;;
        esac
        shift
        ;;
    --enable) enable=yes ;;
    --uninstall) uninstall=yes ;;
    --purge) purge=yes ;;
    --dry-run) dry=yes ;;
    -h | --help) usage; exit 0 ;;
    *) echo "install.sh: unknown option $1; see --help" >&2; exit 2 ;;
    esac
    shift
done

here=$(cd "$(dirname "$0")" && pwd)
from=${from:-$here/../target/release}
workers=${workers:-$(nproc)}
case $workers in '' | *[!0-9]*) echo "install.sh: --workers $workers is not a number" >&2; exit 2 ;; esac
manifest=$destdir$prefix/share/pangea/installed
units=$destdir/etc/systemd/system

run() {
    if [ "$dry" = yes ]; then echo "$*"; else "$@"; fi
}

if [ -z "$destdir" ] && [ "$(id -u)" -ne 0 ] && [ "$dry" = no ]; then
    echo "install.sh: run as root, or give --destdir DIR" >&2
    exit 1
fi

if [ "$uninstall" = yes ]; then
    [ -f "$manifest" ] || { echo "install.sh: $manifest is not there: nothing was installed with this prefix" >&2; exit 1; }
    if [ -z "$destdir" ]; then
        # disable takes no patterns: the instances are those that are enabled or running.
        workers=$(systemctl list-units --all --plain --no-legend 'pangea-worker@*.service' | cut -d ' ' -f 1)
        for link in "$units"/pangea.target.wants/pangea-worker@*.service; do
            [ -L "$link" ] && workers="$workers ${link##*/}"
        done
        # shellcheck disable=SC2086 # one word for each unit
        run systemctl disable --now pangea.target pangea-controller.service $workers || true
    fi
    while read -r path; do run rm -f "$destdir$path"; done <"$manifest"
    run rm -f "$manifest"
    run rmdir -p --ignore-fail-on-non-empty "$destdir$prefix/share/pangea" || true
    [ "$purge" = no ] || run rm -rf "$destdir/etc/pangea" "$destdir/var/lib/pangea"
    [ -n "$destdir" ] || run systemctl daemon-reload
    exit 0
fi

for program in pangea-controller pangea-worker pangeactl; do
    [ -x "$from/$program" ] || { echo "install.sh: $from/$program is not there; run: cargo build --release" >&2; exit 1; }
done

installed=''
put() { # mode source target
    run install -D -m "$1" "$2" "$destdir$3"
    installed="$installed$3
"
}

for program in pangea-controller pangea-worker pangeactl; do put 755 "$from/$program" "$prefix/bin/$program"; done
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
for unit in pangea-controller.service pangea-worker@.service pangea.target; do
    sed "s|/usr/local/bin/|$prefix/bin/|" "$here/systemd/$unit" >"$temporary/$unit"
    put 644 "$temporary/$unit" "${units#"$destdir"}/$unit"
done
put 644 "$here/sysusers.d/pangea.conf" /etc/sysusers.d/pangea.conf
put 644 "$here/tmpfiles.d/pangea.conf" /etc/tmpfiles.d/pangea.conf
put 644 "$here/sysctl.d/90-pangea.conf" /etc/sysctl.d/90-pangea.conf
"$from/pangeactl" completions bash >"$temporary/pangeactl"
put 644 "$temporary/pangeactl" "$prefix/share/bash-completion/completions/pangeactl"
# The operator's own configuration is never replaced, nor removed by --uninstall.
[ -e "$destdir/etc/pangea/pangea.toml" ] || run install -D -m 644 "$here/pangea.toml" "$destdir/etc/pangea/pangea.toml"
printf '%s' "$installed" >"$temporary/installed"
run install -D -m 644 "$temporary/installed" "$manifest"

if [ "$enable" = yes ]; then
    [ -z "$destdir" ] || { echo "install.sh: --enable works on this system, not on --destdir" >&2; exit 2; }
    run systemd-sysusers
    run systemd-tmpfiles --create
    run systemctl restart systemd-sysctl.service
    run systemctl daemon-reload
    run systemctl enable --now pangea.target pangea-controller.service
    index=0
    while [ "$index" -lt "$workers" ]; do
        run systemctl enable --now "pangea-worker@$index.service"
        index=$((index + 1))
    done
fi
