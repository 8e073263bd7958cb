# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
# For scripts that need other Debian systems: sourced by check-bare.sh, check-compat.sh and
# check-msrv.sh.
# They are made with debootstrap and kept, so that only the first run is long.
#
#     COMPAT_DIR=DIR       where the systems are kept (default: target/compat);
#                          remove DIR/NAME to have that system made afresh
#     MIRROR=URL           where Debian is (default: as apt is set up here)

compat=${COMPAT_DIR:-${CARGO_TARGET_DIR:-target}/compat}

# Mounts and processes of a namespace end with its first process, so nothing has
# to be unmounted or killed, however a script ends.
inside() { unshare --mount --propagation private --pid --fork --kill-child -- "$@"; }

need_systems() { # TARGET: what make calls this
    [ "$(id -u)" = 0 ] || die "needs root, for debootstrap and chroot: sudo make $1"
    command -v debootstrap >/dev/null || die "debootstrap is missing (Debian, Fedora: debootstrap)"
    inside true 2>/dev/null || die "needs the right to make mount and PID namespaces"
    mkdir -p "$compat"
    compat=$(realpath "$compat")
    exec 9>"$compat/lock"
    flock -n 9 || die "another run is using $compat"
}

# The stamp names what is in there: another list of packages, another system.
need_system() { # NAME SUITE PACKAGE...
    local name=$1 suite=$2 dir=$compat/$1
    shift 2
    [[ $suite =~ ^[a-z]+$ ]] || die "no suite of Debian: $suite"
    [ "$(cat "$dir/stamp" 2>/dev/null)" = "$*" ] && return
    [ ! -e "$dir" ] || [ -f "$dir/stamp" ] || die "$dir was not made by this script"
    echo "making $name in $dir, which takes minutes (log: $dir.log)"
    rm -rf "$dir" "$dir.new"
    if ! scripts/debian-system.sh "$suite" "$dir.new" "$@" >"$dir.log" 2>&1 </dev/null; then
        rm -rf "$dir.new"
        return 1
    fi
    echo "$*" >"$dir.new/stamp"
    mv "$dir.new" "$dir"
}

# Without addresses: which mirror somebody uses is nobody else's business.
why_not() { # NAME
    grep -E '^(E|W):' "$compat/$1.log" | tail -n 1 | sed -E 's|https?://[^ ]*|MIRROR|g' || true
}

# In the system's /check is what the caller has put there. With ONLINE=1 it has this system's
# names and certificates.
in_system() { # NAME COMMAND...
    local root=$compat/$1
    shift
    # shellcheck disable=SC2016 # the inner shell expands these
    inside "$BASH" -euc '
        root=$1
        shift
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        mount -t tmpfs tmpfs "$root/tmp"
        if [ -n "${ONLINE:-}" ]; then
            for lent in /etc/resolv.conf /etc/ssl/certs; do
                if [ -e "$lent" ]; then mount --bind "$lent" "$root$lent"; fi
            done
        fi
        exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
            chroot "$root" "$@"
    ' system "$root" "$@" </dev/null
}
