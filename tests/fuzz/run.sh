#!/usr/bin/env bash
# Fuzzes a target with libFuzzer and the stable compiler: tests/fuzz/run.sh TARGET [SECONDS] [LIBFUZZER-OPTION...]
#
#   TARGET   frame, decode or assembly
#   SECONDS  how long, 60 without it; 0 = until a rule is broken or the terminal says stop
#
# The compiler's own coverage pass gives libFuzzer what it steers by, so neither a nightly compiler nor cargo-fuzz is
# needed; only a C++ compiler, for libFuzzer itself. ASAN=1 adds the address sanitizer, which needs an unstable compiler
# option (RUSTC_BOOTSTRAP=1) and finds what `unsafe` kernels read or write beside their symbols.
#
# New inputs gather in target/fuzz/corpus/TARGET. A broken rule leaves its input in target/fuzz/: copy it to
# tests/fuzz/corpus/TARGET/regression-NAME together with what mends it. `MERGE=1 run.sh TARGET` instead adds to the
# committed corpus those of the new inputs that reach something more.
set -euo pipefail
cd "$(dirname "$0")/../.."

refuse() {
    printf '%s: %s\nusage: %s frame|decode|assembly [SECONDS] [LIBFUZZER-OPTION...]\n' "$0" "$1" "$0" >&2
    exit 2
}

target=${1:-}
seconds=${2:-60}
[ -d "tests/fuzz/corpus/${target:-none}" ] || refuse "there is no target '$target'"
case $seconds in *[!0-9]*) refuse "'$seconds' is not a number of seconds" ;; esac
shift $(($# > 2 ? 2 : $#))

flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
flags+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
flags+=" -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
folder=target/fuzz
if [ "${ASAN:-0}" = 1 ]; then
    export RUSTC_BOOTSTRAP=1
    flags+=" -Zsanitizer=address"
    folder=target/fuzz-asan
    # Freed memory is kept a while by the sanitizer, which libFuzzer would take for the target's.
    export ASAN_OPTIONS=quarantine_size_mb=16
    set -- -rss_limit_mb=2048 "$@"
fi
host=$(rustc -vV | sed -n 's/^host: //p')

# With --target the flags stay away from build scripts, which have no fuzzer to link to.
RUSTFLAGS=$flags CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true \
    cargo build --release --locked -p pangea-fuzz --features libfuzzer --bin "fuzz-$target" \
    --target "$host" --target-dir "$folder"

mkdir -p "target/fuzz/corpus/$target"
fuzzer=$folder/$host/release/fuzz-$target
if [ "${MERGE:-0}" = 1 ]; then
    # By edges alone: how often an edge was passed tells libFuzzer where to go on, and nobody else anything.
    exec "$fuzzer" -set_cover_merge=1 -use_counters=0 -max_len=4096 "tests/fuzz/corpus/$target" "target/fuzz/corpus/$target"
fi
exec "$fuzzer" -max_total_time="$seconds" -max_len=4096 -timeout=30 -rss_limit_mb=1024 -print_final_stats=1 \
    -artifact_prefix="target/fuzz/$target-" "$@" "target/fuzz/corpus/$target" "tests/fuzz/corpus/$target"
