#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Installs, uses and removes the Debian packages in this system, as root, and leaves it as it
# was. scripts/check-compat.sh runs it inside other systems.
#
#     scripts/compat-packages.sh DIR      with the two .deb files in DIR
set -euo pipefail

beside=$(echo "$1"/nbdkit-plugin-nbdrs_*.deb)
instead=$(echo "$1"/nbdkit-plugin-nbd-rust_*.deb)
export PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

plugins=$(nbdkit --dump-config | sed -n 's/^plugindir=//p')
theirs=("$plugins/nbdkit-nbd-plugin.so" /usr/share/man/man1/nbdkit-nbd-plugin.1.gz)

fail() { echo "$*" >&2; return 1; }

# In a minimal system there may be no page.
as_it_is() {
    for file in "${theirs[@]}"; do
        if [ -e "$file" ]; then sha256sum -- "$file"; fi
    done
    find / -xdev -path /proc -prune -o \( -name '*nbdkit*nbd*.distrib' -o -name '*nbdrs*' -o -name '*nbdctl*' \) -print |
        grep -v "^$work" | grep -v '^/check/' || true
    dpkg-divert --list '*nbdkit*'
    dpkg-query -W -f '${Package} ${Status}\n' 'nbdkit*'
}

ours() { nbdkit "$1" --dump-plugin | grep -q '^nbd_client=rust/'; }

# A disk through it, and back.
copies_through() { # NAME
    dd if=/dev/urandom of=disk bs=1M count=3 status=none
    # shellcheck disable=SC2016 # nbdkit's shells expand these
    nbdkit -U - file disk --run '
        nbdkit -U - '"$1"' "$uri" --run "nbdcopy \"\$uri\" copy"'
    cmp disk copy
    rm -f disk copy
}

# --- the steps, each on top of the one before ----------------------------------------------

step_package_beside_is_installed() {
    dpkg --install "$beside"
    ours nbdrs || fail "nbdkit nbdrs is not ours"
    ! ours nbd || fail "nbdkit nbd is ours already"
    copies_through nbdrs
    nbdkit-nbdctl --version | grep -q '^nbdkit-nbdctl ' || fail "no nbdkit-nbdctl"
}

step_package_instead_is_installed() {
    dpkg --install "$instead"
    ours nbd || fail "nbdkit nbd is not ours"
    copies_through nbd
    nbdkit "${theirs[0]}.distrib" --dump-plugin | grep -q '^libnbd_version=' ||
        fail "the distribution's is not where it should be"
}

step_packages_are_installed_once_more() {
    dpkg --install "$beside" "$instead"
    ours nbd
    ours nbdrs
}

step_distributions_plugin_is_back() {
    dpkg --remove nbdkit-plugin-nbd-rust
    ! ours nbd || fail "nbdkit nbd is still ours"
    ours nbdrs || fail "the package beside it went, too"
}

step_package_that_lacks_the_other_goes_as_it_came() {
    dpkg --remove nbdkit-plugin-nbdrs
    ! dpkg --install "$instead" || fail "it does not need the other"
    dpkg --remove nbdkit-plugin-nbd-rust
    ! ours nbd || fail "nbdkit nbd is still ours"
}

step_system_is_as_it_was() {
    dpkg --purge nbdkit-plugin-nbd-rust nbdkit-plugin-nbdrs
    as_it_is >after
    diff before after
}

# --- running them -------------------------------------------------------------------------------

# What an earlier run may have left, or this one.
clean() { dpkg --purge nbdkit-plugin-nbd-rust nbdkit-plugin-nbdrs >/dev/null 2>&1 || true; }
clean
as_it_is >before
mapfile -t steps < <(sed -n 's/^\(step_[a-z0-9_]*\)().*/\1/p' "$0")
for step in "${steps[@]}"; do
    name=${step#step_}
    name=${name//_/ }
    # Not in an `if`, which would switch off `set -e` in there.
    set +e
    (set -e; "$step") >log 2>&1
    status=$?
    set -e
    if [ $status = 0 ]; then
        echo "ok $name"
    else
        echo "FAILED $name: $(grep -aE 'rror|nbdkit' log | tail -n 1 || tail -n 1 log)"
        clean
        break
    fi
done
