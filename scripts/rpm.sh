#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Makes the RPM packages from the source release, without network, and lets rpmlint judge. On
# Debian they are for looking at and unpacking: rpm's data base knows no compiler there.
#
#     scripts/rpm.sh             prints the names of the packages
#     RPM_DIR=DIR                where they go (default: target/rpm)
#     DIST=FILE                  the release to build (default: one of the last commit)
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C.UTF-8

die() { echo "rpm: $*" >&2; exit 1; }

out=${RPM_DIR:-${CARGO_TARGET_DIR:-target}/rpm}
mkdir -p "$out"
out=$(realpath "$out")
dist=$(realpath "${DIST:-$(scripts/dist.sh)}")
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

build=(rpmbuild -ta --define "_topdir $work")
# Where packages are dpkg's, what the build needs was seen to by scripts/deps.sh.
rpm -q rpm >/dev/null 2>&1 || build+=(--nodeps)
offline=(env -u CARGO_TARGET_DIR)
if unshare --net true 2>/dev/null; then
    offline=(unshare --net -- env -u CARGO_TARGET_DIR)
fi

log=$out/build.log
"${offline[@]}" "${build[@]}" "$dist" >"$log" 2>&1 </dev/null ||
    { tail -n 30 "$log" >&2; die "rpmbuild failed (log: $log)"; }

rpmlint --config packaging/rpmlint.toml packaging/nbdkit-nbd-plugin-rust.spec \
    "$work"/SRPMS/*.rpm "$work"/RPMS/*/*.rpm >"$out/rpmlint.log" 2>&1 ||
    { cat "$out/rpmlint.log" >&2; die "rpmlint objects"; }
# It leaves with 0 also where it only warned.
grep -qE ' 0 errors?, 0 warnings?' "$out/rpmlint.log" ||
    { cat "$out/rpmlint.log" >&2; die "rpmlint objects"; }

rm -f "$out"/*.rpm
mv "$work"/SRPMS/*.rpm "$work"/RPMS/*/*.rpm "$out/"
printf '%s\n' "$out"/*.rpm
