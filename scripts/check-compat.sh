#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Loads the one release binary into the nbdkit of several Debian systems and
# runs scripts/compat-smoke.sh in each; then installs, uses and removes the
# Debian packages there (scripts/compat-packages.sh).
#
#     PLUGIN=FILE          check this plugin instead of building ours
#     DEBS=DIR             and these packages (default: those of the last commit;
#                          with PLUGIN none)
#     COMPAT_SUITES=LIST   default: bookworm trixie sid
#     COMPAT_DIR=DIR, MIRROR=URL   see scripts/systems.sh
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(nbdkit libnbd-bin python3-libnbd qemu-utils)
suites=${COMPAT_SUITES:-bookworm trixie sid}

die() { echo "check-compat: $*" >&2; exit 2; }

. scripts/systems.sh
need_systems check-compat

if [ -n "${PLUGIN:-}" ]; then
    plugin=$(realpath "$PLUGIN")
else
    scripts/cargo.sh build --release --locked
    plugin=$(realpath "${CARGO_TARGET_DIR:-target}/release/libnbdkit_nbd_plugin.so")
    if [ -n "${DEBS:-}" ]; then
        :
    elif [ -e /etc/debian_version ]; then
        scripts/deps.sh build dist deb
        scripts/deb.sh
        DEBS=${DEB_DIR:-${CARGO_TARGET_DIR:-target}/deb}
    else
        echo "without the packages, which are made on Debian"
    fi
fi
[ -f "$plugin" ] || die "there is no plugin at $plugin"
debs=()
if [ -n "${DEBS:-}" ]; then
    mapfile -t debs < <(find "$DEBS" -maxdepth 1 -name 'nbdkit-plugin-*.deb' ! -name '*-dbgsym_*')
    [ ${#debs[@]} = 2 ] || die "there are no packages in $DEBS"
fi

smoke() { # SUITE
    local check=$compat/$1/check
    rm -rf "$check"
    install -D -t "$check" "$plugin" scripts/compat-smoke.sh scripts/compat-packages.sh "${debs[@]}" || return 1
    in_system "$1" bash /check/compat-smoke.sh "/check/$(basename "$plugin")" || return 1
    [ ${#debs[@]} = 0 ] || in_system "$1" bash /check/compat-packages.sh /check
}

report=$(mktemp)
trap 'rm -f "$report"' EXIT
for suite in $suites; do
    if ! need_system "$suite" "$suite" "${packages[@]}"; then
        echo "skipped $suite: cannot be made here: $(why_not "$suite")" | tee -a "$report"
    elif ! smoke "$suite" | sed -u "s/ / $suite: /" | tee -a "$report"; then
        echo "FAILED $suite: the checks did not run to their end" | tee -a "$report"
    fi
done

count() { grep -c "^$1 " "$report" || true; }
passed=$(count ok) failed=$(count FAILED) skipped=$(count skipped)
echo "$passed passed, $failed failed, $skipped skipped"
# A run that checked nothing has shown nothing, and in CI nothing may be left out.
[ "$failed" = 0 ] && [ "$passed" -gt 0 ] && { [ -z "${CI:-}" ] || [ "$skipped" = 0 ]; }
