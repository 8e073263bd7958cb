#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# cargo, with this machine's paths kept out of what it builds: two builds of the same source in
# two folders are the same file, debug information and messages included. Every release build goes
# through here, so that they share one set of artifacts.
#
#     scripts/cargo.sh build --release --locked
set -euo pipefail
cd "$(dirname "$0")/.."

here=$PWD
cargo_home=${CARGO_HOME:-${HOME:-/root}/.cargo}
target=$(realpath -m -- "${CARGO_TARGET_DIR:-target}")

# A crate has the same name whether cargo fetched it or `make dist` put it into vendor/.
from=("$here" "$target" "$here/vendor") to=(. ./target /crates)
for registry in "$cargo_home"/registry/src/*/; do
    from+=("${registry%/}") to+=(/crates)
done

# Cargo takes one variable of flags; whatever is set already stays in front. This one may have
# spaces in a flag. rustc lets the last match win, as gcc does.
flags=${CARGO_ENCODED_RUSTFLAGS:-}
if [ -z "$flags" ]; then
    read -ra given <<<"${RUSTFLAGS:-}"
    for flag in "${given[@]}"; do flags+=${flags:+$'\x1f'}$flag; done
fi
for i in "${!from[@]}"; do
    flags+=${flags:+$'\x1f'}--remap-path-prefix$'\x1f'${from[i]}=${to[i]}
done
export CARGO_ENCODED_RUSTFLAGS=$flags

# For the shim in C; the second variable says that the flags are quoted as in a shell.
printf -v quoted '%q' "-ffile-prefix-map=$here=."
export CFLAGS="${CFLAGS:+$CFLAGS }$quoted" CC_SHELL_ESCAPED_FLAGS=1

exec cargo "$@"
