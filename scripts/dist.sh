#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Makes the source release: the last commit, the crates it needs, and a list of them.
#
#     scripts/dist.sh            prints the name of the tarball
#     DIST_DIR=DIR               where it goes (default: target/dist)
#
# The same commit, cargo, tar and xz give the same tarball. What is built from it needs no
# network: .cargo/config.toml in it points at vendor/.
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C TZ=UTC
umask 022

die() { echo "dist: $*" >&2; exit 1; }

git rev-parse --verify -q HEAD >/dev/null || die "needs the git repository, not an unpacked release"
git diff --quiet HEAD -- || echo "dist: what is not committed is left out" >&2

out=${DIST_DIR:-${CARGO_TARGET_DIR:-target}/dist}
mkdir -p "$out"
out=$(realpath "$out")
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
version=$(git show HEAD:Cargo.toml | sed -n 's/^version = "\(.*\)"/\1/p' | head -n 1)
name=nbdkit-nbd-plugin-$version
tree=$work/$name

git archive --format=tar --prefix="$name/" HEAD | tar -x -C "$work"
cd "$tree"
cargo vendor --locked --quiet --versioned-dirs vendor >/dev/null
scripts/crates.py trim vendor
scripts/crates.py sbom >nbdkit-nbd-plugin.cdx.json
scripts/crates.py copyright packaging/debian/copyright.in vendor >packaging/debian/copyright
mkdir -p .cargo
cat >.cargo/config.toml <<'END'
# Made by `make dist`: all crates are here, so that nothing is fetched.
[source.crates-io]
replace-with = "vendored"

[source.vendored]
directory = "vendor"

[net]
offline = true
END

# --- and nothing in it that depends on who made it, or where ------------------------------

cd "$work"
find "$name" -type d -exec chmod 755 {} +
find "$name" -type f -perm /111 -exec chmod 755 {} +
find "$name" -type f ! -perm /111 -exec chmod 644 {} +
tar --create --format=gnu --sort=name --mtime="@$SOURCE_DATE_EPOCH" \
    --owner=0 --group=0 --numeric-owner "$name" | xz -6 --threads=1 >"$work/$name.tar.xz"
mv -f "$work/$name.tar.xz" "$out/"
echo "$out/$name.tar.xz"
