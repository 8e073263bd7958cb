#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Makes the Debian packages from the source release, without network, and lets lintian judge.
#
#     scripts/deb.sh             prints the names of the packages
#     DEB_DIR=DIR                where they go (default: target/deb)
#     DIST=FILE                  the release to build (default: one of the last commit)
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C.UTF-8

die() { echo "deb: $*" >&2; exit 1; }

out=${DEB_DIR:-${CARGO_TARGET_DIR:-target}/deb}
mkdir -p "$out"
out=$(realpath "$out")
dist=$(realpath "${DIST:-$(scripts/dist.sh)}")
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

tar -xf "$dist" -C "$work"
tree=$(echo "$work"/nbdkit-nbd-plugin-*)
[ -d "$tree" ] || die "$dist is no release of this plugin"
version=${tree##*-}
source=$(sed -n 's/^Source: //p' "$tree/packaging/debian/control")
cp -p "$dist" "$work/${source}_$version.orig.tar.xz"
cp -R "$tree/packaging/debian" "$tree/debian"
rm "$tree/debian/copyright.in"

# Nothing may be fetched, even where the network is there.
offline=(env -u CARGO_TARGET_DIR)
if unshare --net true 2>/dev/null; then
    offline=(unshare --net -- env -u CARGO_TARGET_DIR)
fi
build=(dpkg-buildpackage --unsigned-source --unsigned-changes --no-check-builddeps)
if [ "$(id -u)" != 0 ]; then build+=(--root-command=fakeroot); fi

log=$out/build.log
(cd "$tree" && "${offline[@]}" "${build[@]}") >"$log" 2>&1 </dev/null ||
    { tail -n 30 "$log" >&2; die "dpkg-buildpackage failed (log: $log)"; }
# All but pedantry fails; root may run it, too.
lintian --allow-root --info --display-info --fail-on error,warning,info \
    "$work"/*.changes >"$out/lintian.log" 2>&1 || { cat "$out/lintian.log" >&2; die "lintian objects"; }

rm -f "$out"/*.deb "$out"/*.dsc "$out"/*.changes "$out"/*.buildinfo "$out"/*.tar.xz
rm -rf "$tree"
mv "$work"/* "$out/"
printf '%s\n' "$out"/*.deb
