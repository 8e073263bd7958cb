#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Fuzzes every target of fuzz/ for SECONDS each (60), or those named in TARGETS. Needs a nightly toolchain, for the
# address sanitizer, and what fuzz/Cargo.lock names.
#
# What fails is in fuzz/artifacts/TARGET, and `scripts/fuzz.sh TARGET FILE` runs it once more. New inputs
# stay in target/fuzz/corpus; fuzz/corpus has those that are kept.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${SECONDS_EACH:-60}
read -ra targets <<<"${TARGETS:-$(sed -n 's/^name = "\([a-z]*\)"$/\1/p' fuzz/Cargo.toml | tr '\n' ' ')}"

cargo +nightly --version >/dev/null || { echo "fuzz: needs: rustup toolchain install nightly" >&2; exit 1; }
host=$(rustc +nightly -vV | sed -n 's/^host: //p')
# What cargo-fuzz does. With --target build scripts are left as they are.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address --cfg fuzzing"
made=$PWD/target/fuzz
cargo +nightly build --release --target "$host" --target-dir "$made" --manifest-path fuzz/Cargo.toml --bins

if [ $# -gt 0 ]; then
    exec "$made/$host/release/$1" "${@:2}"
fi
status=0
for target in "${targets[@]}"; do
    mkdir -p "$made/corpus/$target" "fuzz/artifacts/$target"
    options=(-max_total_time="$seconds" -timeout=120 -rss_limit_mb=2048 -print_final_stats=1
        -artifact_prefix="fuzz/artifacts/$target/")
    # Its threads may still be ending when the sanitizer looks at what they have allocated, which it
    # does behind each input and at the end.
    leaks=1
    [ "$target" != connection ] || { leaks=0; options+=(-detect_leaks=0); }
    echo "==> $target: $seconds seconds"
    if ! ASAN_OPTIONS=detect_leaks=$leaks "$made/$host/release/$target" "${options[@]}" "$made/corpus/$target" "fuzz/corpus/$target" \
        >"$made/$target.log" 2>&1; then
        echo "fuzz: $target failed:" >&2
        tail -n 40 "$made/$target.log" >&2
        status=1
    fi
    grep -E 'stat::number_of_executed_units|DONE' "$made/$target.log" || true
done
exit $status
