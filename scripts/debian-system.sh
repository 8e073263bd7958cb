#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Makes a small Debian system in a folder, from the mirror this system uses.
#
#     scripts/debian-system.sh SUITE DIR PACKAGE...
#
#     MIRROR=URL      default: the first Debian source that apt has here
#
# Run as root. What it mounts below DIR is gone when it ends, because it works
# in a mount namespace of its own.
set -euo pipefail

suite=$1 dir=$2
shift 2

if [ "${IN_OWN_NAMESPACE:-}" != "$PPID" ]; then
    IN_OWN_NAMESPACE=$$ unshare --mount --propagation private -- "$BASH" "$0" "$suite" "$dir" "$@"
    exit
fi

# --- what this system's apt says ------------------------------------------------

debian_suites=' bookworm trixie forky sid stable testing unstable oldstable '

mirror_of_apt() {
    command -v apt-get >/dev/null || return 0
    # shellcheck disable=SC2016 # apt-get expands these
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 2>/dev/null |
        while read -r uri release component; do
            if [[ $debian_suites == *" $release "* && $component == main ]]; then
                echo "$uri"
                break
            fi
        done
}

apt_setting() { # NAME
    command -v apt-config >/dev/null || return 0
    apt-config dump "$1" | sed -n "s/^$1 \"\(.*\)\";\$/\1/p"
}

mirror=${MIRROR:-$(mirror_of_apt)}
mirror=${mirror:-http://deb.debian.org/debian}
proxy=$(apt_setting Acquire::http::Proxy)
[ -z "$proxy" ] || export http_proxy=$proxy
# The signature of a mirror that is frozen in time is outdated. Whether that is
# all right was decided by whoever set up apt here.
valid_until=$(apt_setting Acquire::Check-Valid-Until)

# --- making it ---------------------------------------------------------------------

# A suite that is younger than debootstrap is made like sid.
recipe=/usr/share/debootstrap/scripts/$suite
[ -e "$recipe" ] || recipe=/usr/share/debootstrap/scripts/sid
debootstrap --variant=minbase "$suite" "$dir" "$mirror" "$recipe"

mount -t proc proc "$dir/proc"
# Name resolution and certificates are only lent.
rm -f "$dir/etc/resolv.conf"
touch "$dir/etc/resolv.conf"
mount --bind /etc/resolv.conf "$dir/etc/resolv.conf"
mkdir -p "$dir/etc/ssl/certs"
if [ -d /etc/ssl/certs ]; then
    mount --bind /etc/ssl/certs "$dir/etc/ssl/certs"
fi

# debootstrap itself has --include, but does not understand every dependency.
apt=(chroot "$dir" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 apt-get -q -y
    -o "Acquire::Check-Valid-Until=${valid_until:-true}")
"${apt[@]}" update
"${apt[@]}" install --no-install-recommends "$@" </dev/null
"${apt[@]}" clean
