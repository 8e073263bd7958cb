#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Makes the RPM packages from the source release, without network, and lets rpmlint judge. On
# Debian they are for looking at and unpacking: rpm's data base knows no compiler there.
#
#     scripts/rpm.sh             prints the names of the packages
#     RPM_DIR=DIR                where they go (default: target/rpm)
#     DIST=FILE                  see scripts/packages.sh
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C.UTF-8

. scripts/packages.sh
prepare rpm "${RPM_DIR:-}"

command=(rpmbuild -ta --define "_topdir $work")
# Where packages are dpkg's, what the build needs was seen to by scripts/deps.sh.
rpm -q rpm >/dev/null 2>&1 || command+=(--nodeps)
build "${command[@]}" "$dist"

rpmlint --config packaging/rpmlint.toml packaging/nbdkit-nbd-plugin-rust.spec \
    "$work"/SRPMS/*.rpm "$work"/RPMS/*/*.rpm >"$out/rpmlint.log" 2>&1 || objects rpmlint
# It leaves with 0 also where it only warned.
grep -qE ' 0 errors?, 0 warnings?' "$out/rpmlint.log" || objects rpmlint

rm -f "$out"/*.rpm
mv "$work"/SRPMS/*.rpm "$work"/RPMS/*/*.rpm "$out/"
printf '%s\n' "$out"/*.rpm
