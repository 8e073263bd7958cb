# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
# For scripts that make packages from the source release: sourced by deb.sh and rpm.sh.
#
#     DIST=FILE            the release to build (default: one of the last commit)

# prepare FORMAT OUT: sets out and dist, makes a folder `work` that goes when the script ends.
prepare() {
    format=$1
    out=${2:-${CARGO_TARGET_DIR:-target}/$format}
    mkdir -p "$out"
    out=$(realpath "$out")
    # shellcheck disable=SC2034 # whoever sources this uses it
    dist=$(realpath "${DIST:-$(scripts/dist.sh)}")
    work=$(mktemp -d "$out/.work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}

die() { echo "$format: $*" >&2; exit 1; }

# Nothing may be fetched, even where the network is there.
offline() {
    if unshare --net true 2>/dev/null; then
        unshare --net -- env -u CARGO_TARGET_DIR "$@"
    else
        env -u CARGO_TARGET_DIR "$@"
    fi
}

# build COMMAND...: with a log of its own.
build() {
    log=$out/build.log
    offline "$@" >"$log" 2>&1 </dev/null ||
        { tail -n 30 "$log" >&2; die "$1 failed (log: $log)"; }
}

objects() { cat "$out/$1.log" >&2; die "$1 objects"; }
