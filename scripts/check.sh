#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Runs every test of the project. `make check` installs what they need first.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { echo; echo "==> $* (after $SECONDS s)"; }

step "unit tests, tests with real programs, documentation tests"
scripts/tests.sh

# loom replaces the synchronisation primitives in the whole crate, so that this
# build has a target directory of its own; release, because loom tries every
# interleaving.
step "loom models"
CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    RUSTFLAGS="--cfg loom" cargo test --locked --release --lib --target-dir "${CARGO_TARGET_DIR:-target}/loom" loom_

step "instructions per request"
scripts/cargo.sh bench --locked --bench instructions

step "make run"
ONCE=1 UPSTREAM='' PLUGIN='' scripts/run.sh

step "make man, make html"
make --no-print-directory man html >/dev/null

# What it does to files that are not ours is in tests/install.rs.
step "make install, make uninstall"
dest=$(mktemp -d)
trap 'rm -rf "$dest"' EXIT
make --no-print-directory install DESTDIR="$dest/a stage" prefix=/usr
nbdkit "$(find "$dest" -name 'nbdkit-nbd-plugin.so')" --dump-plugin >/dev/null
make --no-print-directory uninstall DESTDIR="$dest/a stage" prefix=/usr
left=$(find "$dest" -type f)
[ -z "$left" ] || { echo "left behind by uninstall: $left" >&2; exit 1; }

step "everything but make lint has been run"
