#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# From the last commit to packages at work in other systems, end to end: the source release, that
# it is the same each time and so is what is built from it, Debian's and RPM packages as their
# linters want them, and the oldest compiler. As root, because other systems are made.
#
#     COMPAT_DIR=DIR, MIRROR=URL, COMPAT_SUITES=LIST   see scripts/systems.sh, check-compat.sh
set -euo pipefail
cd "$(dirname "$0")/.."

step() { echo; echo "==> $*"; }
die() { echo "check-packages: $*" >&2; exit 1; }

out=${CARGO_TARGET_DIR:-target}
mkdir -p "$out"
out=$(realpath "$out")
work=$(mktemp -d "$out/check-packages.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

same() { # WHAT FILE FILE
    cmp -- "$2" "$3" || die "$1: two runs, two results"
    echo "$1: $(sha256sum <"$2" | cut -d ' ' -f 1), twice"
}

step "make dist, twice"
one=$(DIST_DIR=$work/one scripts/dist.sh)
# Another user's habits.
two=$(umask 077 && TZ=Asia/Kolkata DIST_DIR="$work/the other" scripts/dist.sh)
same "$(basename "$one")" "$one" "$two"

step "what is in it"
mkdir "$work/a" "$work/in another folder"
tar -xf "$one" -C "$work/a" --strip-components=1
tar -xf "$two" -C "$work/in another folder" --strip-components=1
/usr/bin/python3 - "$work/a" <<'END'
import json, pathlib, sys, tomllib
tree = pathlib.Path(sys.argv[1])
bill = json.loads((tree / "nbdkit-nbd-plugin.cdx.json").read_text())
parts = {(part["name"], part["version"]): part for part in bill["components"]}
locked = tomllib.loads((tree / "Cargo.lock").read_text())["package"]
sums = {(crate["name"], crate["version"]): crate.get("checksum") for crate in locked}
# Of what no Linux needs there is a name and nothing else.
whole = {folder.name for folder in (tree / "vendor").iterdir()
         if json.loads((folder / ".cargo-checksum.json").read_text())["files"]}
listed = {f"{name}-{version}" for name, version in parts}
assert whole == listed, whole ^ listed
for crate, part in parts.items():
    assert part["hashes"][0]["content"] == sums[crate], crate
linked = sorted(part["name"] for part in parts.values() if part["scope"] == "required")
assert {"libc", "openssl", "rustix"} <= set(linked) and "bindgen" not in linked, linked
assert not [folder for folder in whole if folder.startswith(("windows", "wasi"))]
print(f"{len(parts)} crates, {len(locked) - 1 - len(parts)} by name only; in the plugin: {' '.join(linked)}")
END

step "two builds in two folders, without network"
offline=(env -u CARGO_TARGET_DIR)
if unshare --net true 2>/dev/null; then offline=(unshare --net -- "${offline[@]}"); fi
so=target/release/libnbdkit_nbd_plugin.so
for tree in "$work/a" "$work/in another folder"; do
    # With a home of its own: what is there must not matter.
    CARGO_HOME="$tree/home" "${offline[@]}" "$tree/scripts/cargo.sh" build --release --locked --offline --quiet
done
same "$(basename $so)" "$work/a/$so" "$work/in another folder/$so"
if grep -aqF "$work" "$work/a/$so"; then die "this machine's paths are in it"; fi

step "make deb"
DIST=$one DEB_DIR=$work/deb scripts/deb.sh

step "make rpm, unpacked and used"
DIST=$one RPM_DIR=$work/rpm scripts/rpm.sh
mkdir "$work/root"
for package in "$work"/rpm/*.rpm; do
    case $package in
    *.src.rpm | *-debug*) ;;
    *) rpm2cpio "$package" | (cd "$work/root" && cpio --extract --make-directories --quiet) ;;
    esac
done
find "$work/root" \( -type f -o -type l \) -printf '%P\n' | sort
rpm -qp --provides "$work"/rpm/nbdkit-nbd-plugin-rust-[0-9]*.x86_64.rpm | grep -qx nbdkit-nbd-plugin
rpm -qp --conflicts "$work"/rpm/nbdkit-nbd-plugin-rust-[0-9]*.x86_64.rpm | grep -qx nbdkit-nbd-plugin
plugin=$(find "$work/root" -name nbdkit-nbd-plugin.so)
scripts/compat-smoke.sh "$plugin" | tee "$work/smoke.log"
if grep -q '^FAILED' "$work/smoke.log" || ! grep -q '^ok' "$work/smoke.log"; then
    die "what is in the RPM packages does not work"
fi

step "the packages in other systems"
PLUGIN=$work/a/$so DEBS=$work/deb scripts/check-compat.sh

step "the oldest compiler"
DIST=$one scripts/check-msrv.sh

echo
echo "all of it is as it should be"
