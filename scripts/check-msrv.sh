#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Builds the release with the oldest compiler that Cargo.toml promises: Debian 13 has it. Without
# network and in a system of its own, which is kept (scripts/systems.sh).
#
#     DIST=FILE            the release to build (default: one of the last commit)
set -euo pipefail
cd "$(dirname "$0")/.."

die() { echo "check-msrv: $*" >&2; exit 2; }

. scripts/systems.sh
need_systems check-packages

system=trixie-rust
need_system $system trixie gcc libc6-dev pkg-config nbdkit nbdkit-plugin-dev libclang-dev \
    libssl-dev rustc cargo || die "cannot make a system: $(why_not $system)"
oldest=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
dist=$(realpath "${DIST:-$(scripts/dist.sh)}")

rm -rf "$compat/$system/check"
mkdir "$compat/$system/check"
tar -xf "$dist" -C "$compat/$system/check" --strip-components=1
# shellcheck disable=SC2016 # the inner shell expands these
in_system $system unshare --net -- bash -euc '
    cd /check
    rustc --version
    rustc --version | grep -qF "rustc $1." || { echo "not $1"; exit 1; }
    scripts/cargo.sh build --release --locked --offline
    nbdkit target/release/libnbdkit_nbd_plugin.so --dump-plugin | grep ^nbd_client=
' msrv "$oldest"
rm -rf "$compat/$system/check"
