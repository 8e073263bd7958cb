#!/bin/bash
# Loads the one release binary into the nbdkit of several Debian systems and
# runs scripts/compat-smoke.sh in each. The systems are made with debootstrap
# and kept, so that only the first run is long.
#
#     PLUGIN=FILE          check this plugin instead of building ours
#     COMPAT_DIR=DIR       where the systems are kept (default: target/compat);
#                          remove DIR/SUITE to have that system made afresh
#     COMPAT_SUITES=LIST   default: bookworm trixie sid
#     MIRROR=URL           where Debian is (default: as apt is set up here)
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(nbdkit libnbd-bin python3-libnbd qemu-utils)
suites=${COMPAT_SUITES:-bookworm trixie sid}
compat=${COMPAT_DIR:-${CARGO_TARGET_DIR:-target}/compat}

die() { echo "check-compat: $*" >&2; exit 2; }

# Mounts and processes of a namespace end with its first process, so nothing has
# to be unmounted or killed, however this script ends.
inside() { unshare --mount --propagation private --pid --fork --kill-child -- "$@"; }

[ "$(id -u)" = 0 ] || die "needs root, for debootstrap and chroot: sudo make check-compat"
command -v debootstrap >/dev/null || die "debootstrap is missing (Debian, Fedora: debootstrap)"
inside true 2>/dev/null || die "needs the right to make mount and PID namespaces"

if [ -n "${PLUGIN:-}" ]; then
    plugin=$(realpath "$PLUGIN")
else
    cargo build --release --locked
    plugin=$(realpath "${CARGO_TARGET_DIR:-target}/release/libnbdkit_nbd_plugin.so")
fi
[ -f "$plugin" ] || die "there is no plugin at $plugin"

mkdir -p "$compat"
compat=$(realpath "$compat")
exec 9>"$compat/lock"
flock -n 9 || die "another run is using $compat"

# The stamp names what is in there: another list of packages, another system.
need_system() { # SUITE
    local dir=$compat/$1
    [[ $1 =~ ^[a-z]+$ ]] || die "no suite of Debian: $1"
    [ "$(cat "$dir/stamp" 2>/dev/null)" = "${packages[*]}" ] && return
    [ ! -e "$dir" ] || [ -f "$dir/stamp" ] || die "$dir was not made by this script"
    echo "making $1 in $dir, which takes minutes (log: $dir.log)"
    rm -rf "$dir" "$dir.new"
    if ! scripts/debian-system.sh "$1" "$dir.new" "${packages[@]}" >"$dir.log" 2>&1 </dev/null; then
        rm -rf "$dir.new"
        return 1
    fi
    echo "${packages[*]}" >"$dir.new/stamp"
    mv "$dir.new" "$dir"
}

# Without addresses: which mirror somebody uses is nobody else's business.
why_not() { # SUITE
    grep -E '^(E|W):' "$compat/$1.log" | tail -n 1 | sed -E 's|https?://[^ ]*|MIRROR|g' || true
}

smoke() { # SUITE
    local root=$compat/$1
    rm -rf "$root/check"
    install -D -t "$root/check" "$plugin" scripts/compat-smoke.sh || return 1
    # shellcheck disable=SC2016 # the inner shell expands these
    inside "$BASH" -euc '
        mount -t proc proc "$1/proc"
        mount --rbind /dev "$1/dev"
        mount -t tmpfs tmpfs "$1/tmp"
        exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
            chroot "$1" bash /check/compat-smoke.sh "/check/$2"
    ' check-compat "$root" "$(basename "$plugin")" </dev/null
}

report=$(mktemp)
trap 'rm -f "$report"' EXIT
for suite in $suites; do
    if ! need_system "$suite"; then
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
