#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The tests that `make check` runs for seconds, for two hours: the same ones, with more of everything
# that is drawn by chance or counted.
#
#     KILLS=300 MINUTES=20 SESSIONS=200000 SCOPE=1 CASES=20000 ROUNDS=50
#         deaths of the server in each test of scripts/torture.sh; how long clients and servers that
#         die go on; random sessions of the core; operations more in each of its small scopes; cases
#         of each property test; ends of a qemu-nbd of command=
set -euo pipefail
cd "$(dirname "$0")/.."

step() { echo; echo "==> $*"; }

# Optimised, as the first of these are nothing but computing, but not at length.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
pure() { cargo test --locked --release --lib --target-dir "${CARGO_TARGET_DIR:-target}/long" "$@"; }

step "sequences and random sessions of the core"
SCOPE=${SCOPE:-1} SESSIONS=${SESSIONS:-200000} pure session::

step "property tests"
PROPTEST_CASES=${CASES:-20000} pure

step "a server of command=, told to end at random moments"
ROUNDS=${ROUNDS:-50} cargo test --locked --test command_qcow2

step "torture"
scripts/torture.sh

step "soak"
make --no-print-directory soak MINUTES="${MINUTES:-20}"

step "cuts at every byte under TLS"
CUTS=all cargo test --locked --test cuts_tls

step "valgrind"
scripts/check-valgrind.sh

step "fuzzing"
SECONDS_EACH=${SECONDS_EACH:-600}
make --no-print-directory fuzz SECONDS="$SECONDS_EACH"
