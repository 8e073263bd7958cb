#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Measures the plugin beside nbdkit's own in C, which runs twice, and other forwarders.
#
#     QUICK=1          a part of the targets, in two minutes
#     ONLY=A,B         only workloads with one of these in their name (ONLY=? lists them)
#     ROUNDS=N SECS=S  N turns of S seconds for each contender (9 of 0.8; quick: 3 of 0.4)
#     OURS=A.so,B.so   these builds of the plugin instead of ours
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/cargo.sh build --release --locked

# Disks, sockets and output in memory, if it is there and large enough.
base=${TMPDIR:-/tmp}
free=$(df -k --output=avail /dev/shm 2>/dev/null | tail -n 1) || free=0
if [ -w /dev/shm ] && [ "${free:-0}" -gt $((2 * 1024 * 1024)) ]; then base=/dev/shm; fi
dir=$(mktemp -d "$base/nbdkit-bench.XXXXXX")
trap 'rm -rf "$dir"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

TMPDIR=$dir scripts/cargo.sh bench --locked --bench side_by_side
