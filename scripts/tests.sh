#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Runs all tests as `cargo test` does, but several programs at a time: most of them wait most of
# the time, for deadlines and for other programs to end.
#
#     scripts/tests.sh
#     JOBS=N               how many programs at a time (default: one for each processor, 4 at most)
#
# What a program printed is shown when it has ended. The ones that took longest the last time
# begin first; how long each took is in target/test-times, the longest first.
#
# Where no more than three programs fail, each has one more try, alone, when the others are through.
# If it passes then, it counts as passed, for a machine may be too busy for a deadline; but the last
# lines name it, since a test that needs luck is a fault, of the test or of what it tests.
set -euo pipefail
cd "$(dirname "$0")/.."

cores=$(nproc)
jobs=${JOBS:-$((cores < 4 ? cores : 4))}
target=${CARGO_TARGET_DIR:-target}

cargo test --locked --no-run
work=$(mktemp -d "$(realpath "$target")/.tests.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
cargo test --locked --no-run --quiet --message-format=json >"$work/built" 2>/dev/null
# What is built beside them, to be tried by them, is no test.
mapfile -t programs < <(grep '"profile":{[^}]*"test":true}' "$work/built" |
    sed -n 's/^.*"executable":"\([^"]*\)".*$/\1/p')
[ ${#programs[@]} -gt 1 ] || { echo "tests: cargo has built no tests" >&2; exit 1; }

# NAME-0123456789abcdef: the longest of the last time first, and who is new before them.
in_order() {
    for program in "${programs[@]}"; do
        name=${program##*/}
        name=${name%-*}
        echo "$(awk -v name="$name" '$2 == name { print $1 }' "$target/test-times" 2>/dev/null) $program"
    done | sed 's/^ /9999 /' | sort -k1,1nr -k2 | cut -d ' ' -f 2-
}

# shellcheck disable=SC2317,SC2329 # xargs calls it
run() { # PROGRAM
    local name=${1##*/} begun=$EPOCHREALTIME status=0
    local log=$work/$name.log
    "$1" >"$log" 2>&1 </dev/null || status=$?
    echo "$begun $EPOCHREALTIME ${name%-*}" | tr , . | awk '{ printf "%.1f %s\n", $2 - $1, $3 }' >>"$work/times"
    {
        flock 8
        echo "     Running ${name%-*}"
        cat "$log"
        [ $status = 0 ] || echo "${name%-*}: status $status"
        [ $status = 0 ] || echo "$1" >>"$work/failed"
    } 8>"$work/lock"
}
export -f run
export work

# shellcheck disable=SC2016 # the inner shell expands it
in_order | xargs -d '\n' -n 1 -P "$jobs" "$BASH" -c 'run "$1"' run
sort -k1,1nr "$work/times" >"$target/test-times"
cargo test --locked --doc
[ -e "$work/failed" ] || exit 0

if [ "$(wc -l <"$work/failed")" -gt 3 ]; then
    echo "tests: failed, and too many to blame the machine:" >&2
    sed 's|.*/|tests: |; s|-[^-]*$||' "$work/failed" | sort >&2
    exit 1
fi
status=0
mv "$work/failed" "$work/again"
while read -r program; do
    run "$program"
    name=${program##*/}
    if grep -qxF "$program" "$work/failed" 2>/dev/null; then
        verdict="failed, also alone" status=1
    else
        verdict="failed beside others, and passed alone"
    fi
    echo "tests: ${name%-*}: $verdict" >>"$work/verdicts"
done <"$work/again"
cat "$work/verdicts" >&2
exit $status
