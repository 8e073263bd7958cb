#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Makes the Debian packages from the source release, without network, and lets lintian judge.
#
#     scripts/deb.sh             prints the names of the packages
#     DEB_DIR=DIR                where they go (default: target/deb)
#     DIST=FILE                  see scripts/packages.sh
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C.UTF-8

. scripts/packages.sh
prepare deb "${DEB_DIR:-}"

tar -xf "$dist" -C "$work"
tree=$(echo "$work"/nbdkit-nbd-plugin-*)
[ -d "$tree" ] || die "$dist is no release of this plugin"
version=${tree##*-}
source=$(sed -n 's/^Source: //p' "$tree/packaging/debian/control")
cp -p "$dist" "$work/${source}_$version.orig.tar.xz"
cp -R "$tree/packaging/debian" "$tree/debian"
rm "$tree/debian/copyright.in"

command=(dpkg-buildpackage --unsigned-source --unsigned-changes --no-check-builddeps)
if [ "$(id -u)" != 0 ]; then command+=(--root-command=fakeroot); fi
cd "$tree"
build "${command[@]}"
# All but pedantry fails; root may run it, too.
lintian --allow-root --info --display-info --fail-on error,warning,info \
    "$work"/*.changes >"$out/lintian.log" 2>&1 || objects lintian

rm -f "$out"/*.deb "$out"/*.dsc "$out"/*.changes "$out"/*.buildinfo "$out"/*.tar.xz
cd "$out"
rm -rf "$tree"
mv "$work"/* "$out/"
printf '%s\n' "$out"/*.deb
