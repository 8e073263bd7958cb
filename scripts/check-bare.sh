#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Types what the README says in bare Debian systems, in a clean clone of the last commit: nothing
# but make is there before, no git and no Rust either. It takes most of an hour for each.
#
#     BARE_SUITES=LIST     default: bookworm trixie sid
#     BARE_COMMANDS=LIST   default: make run ONCE=1;make check
#     COMPAT_DIR=DIR, MIRROR=URL   see scripts/systems.sh
#
# Logs are COMPAT_DIR/SUITE-bare.run.log. The systems stay bare: a copy is used, and removed.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { echo "check-bare: $*" >&2; exit 2; }

. scripts/systems.sh
need_systems check-bare
IFS=';' read -ra commands <<<"${BARE_COMMANDS:-make run ONCE=1;make check}"

used=$compat/used
trap 'rm -rf "$used"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
# No link to this repository's objects: the clone has to be whole.
rm -rf "$used"
failed=0
for suite in ${BARE_SUITES:-bookworm trixie sid}; do
    if ! need_system "$suite-bare" "$suite" make; then
        echo "FAILED $suite: cannot be made here: $(why_not "$suite-bare")"
        failed=1
        continue
    fi
    rm -rf "$used"
    cp -a --reflink=auto "$compat/$suite-bare" "$used"
    git clone --quiet --no-hardlinks . "$used/root/plugin"
    log=$compat/$suite-bare.run.log
    : >"$log"
    for command in "${commands[@]}"; do
        SECONDS=0 status=0
        # shellcheck disable=SC2016 # the inner shell expands it
        ONLINE=1 in_system used bash -euc 'cd /root/plugin; eval "$1"' typed "$command" >>"$log" 2>&1 ||
            status=$?
        if [ $status = 0 ]; then verdict=ok; else verdict=FAILED failed=1; fi
        echo "$verdict $suite: $command: status $status after $SECONDS s ($log)" | tee -a "$log"
        [ $status = 0 ] || break
    done
done
exit $failed
