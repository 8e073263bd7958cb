#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Installs what building, running, testing or linting this project needs.
#
#     scripts/deps.sh SET...      SET is build, run, test, lint, nbdkit, compat, bench,
#                                 dist, deb or rpm
#
# Each need is checked by the program or file itself, never by package name:
# names differ between distributions, and a tool built from source counts too.
# Nothing missing means nothing done, so every make target can afford to ask.
set -euo pipefail

die() { echo "deps: $*" >&2; exit 1; }

# --- the checks ------------------------------------------------------------

have() { command -v "$1" >/dev/null; }

any_file() { # true if one of the patterns names something that exists
    compgen -G "$1" >/dev/null || { shift; [ $# -gt 0 ] && any_file "$@"; }
}

have_libc() { echo '#include <stdio.h>' | cc -E -o /dev/null - 2>/dev/null; }

have_nbdkit_header() {
    have pkg-config && pkg-config --exists nbdkit &&
        echo '#include <nbdkit-plugin.h>' |
        cc -E -DNBDKIT_API_VERSION=2 -o /dev/null - 2>/dev/null
}

# bindgen needs the library and clang's own stddef.h; Debian's libclang1 alone
# brings only the first.
have_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return
    any_file /usr/lib/llvm-*/lib/libclang{,-*}.so* /usr/lib/*/libclang{,-*}.so* \
        /usr/lib{,64}/libclang.so* /usr/local/lib/libclang.so* &&
        any_file {/usr/lib/llvm-*,/usr,/usr/local}/lib{,64}/clang/*/include/stddef.h
}

have_openssl_headers() { have pkg-config && pkg-config --exists 'openssl >= 3'; }

have_certificates() {
    [ -n "${SSL_CERT_FILE:-}" ] ||
        any_file /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt
}

# The distribution's compiler will do, but cargo and rustc only go together.
oldest_rust=1.85
new_enough() { # PROGRAM
    local version
    version=$("$1" --version 2>/dev/null | grep -oE '[0-9]+\.[0-9]+(\.[0-9]+)?' | head -n 1) || true
    [ "$(printf '%s\n' "$oldest_rust" "${version:-0}" | sort -V | head -n 1)" = "$oldest_rust" ]
}
have_rust() { have cargo && have rustc && new_enough cargo && new_enough rustc; }

have_rust_lints() { cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1; }

have_sshd() { any_file /usr/sbin/sshd /usr/local/sbin/sshd /sbin/sshd; }

have_fio_nbd() { have fio && fio --enghelp=nbd >/dev/null 2>&1; }

# --- what is needed: function, set, check, Debian packages, Fedora packages --

# Of packages with a bar between them Debian has one that is new enough.
each_need() {
    "$1" build "have cc && have_libc"     "gcc libc6-dev"     "gcc glibc-devel"
    "$1" build "have pkg-config"          "pkg-config"        "pkgconf-pkg-config"
    "$1" build "have_nbdkit_header"       "nbdkit-plugin-dev" "nbdkit-devel"
    "$1" build "have_libclang"            "libclang-dev"      "clang-devel"
    "$1" build "have_openssl_headers"     "libssl-dev"        "openssl-devel"
    "$1" build "have_certificates"        "ca-certificates"   "ca-certificates"
    "$1" build "have_rust"                "rustc|rustc-web cargo|cargo-web" "rust cargo"
    "$1" run   "have nbdkit"              "nbdkit"            "nbdkit"
    "$1" run   "have nbdinfo && have nbdcopy" "libnbd-bin"    "libnbd"
    "$1" run   "have qemu-nbd && have qemu-img && have qemu-io" "qemu-utils" "qemu-img"
    # nbdinfo runs file(1) to tell what a disk contains.
    "$1" run   "have file"                "file"              "file"
    "$1" run   "have cmp"                 "diffutils"         "diffutils"
    "$1" test  "[ -x /usr/bin/nbdsh ]"    "python3-libnbd"    "python3-libnbd"
    "$1" test  "have nbd-server"          "nbd-server"        "nbd"
    "$1" test  "have socat"               "socat"             "socat"
    "$1" test  "have ssh && have_sshd" "openssh-client openssh-server" "openssh-clients openssh-server"
    "$1" test  "have nc"                  "netcat-openbsd"    "netcat"
    "$1" test  "have_fio_nbd"             "fio"               "fio fio-engine-nbd"
    "$1" test  "have valgrind"            "valgrind"          "valgrind"
    "$1" test  "have nm && have readelf"  "binutils"          "binutils"
    "$1" test  "have certtool && have psktool" "gnutls-bin"   "gnutls-utils"
    "$1" test  "have systemd-analyze && have systemd-socket-activate" "systemd" "systemd"
    "$1" test  "have pod2man"             "perl"              "perl-podlators"
    # A system that was only unpacked has no /etc/hosts.
    "$1" test  "getent hosts localhost >/dev/null" "libnss-myhostname" "systemd-libs"
    # Elsewhere too: how scripts/install.sh treats Debian's packages is tested.
    "$1" test  "have dpkg-divert"         "dpkg"              "dpkg"
    "$1" nbdkit "have certtool && have psktool" "gnutls-bin"  "gnutls-utils"
    "$1" nbdkit "have jq"                 "jq"                "jq"
    "$1" bench "have nbdkit"              "nbdkit"            "nbdkit"
    "$1" bench "have_fio_nbd"             "fio"               "fio fio-engine-nbd"
    "$1" bench "have socat"               "socat"             "socat"
    "$1" bench "have strace"              "strace"            "strace"
    "$1" bench "have qemu-nbd"            "qemu-utils"        "qemu-img"
    "$1" bench "have nbdinfo"             "libnbd-bin"        "libnbd"
    "$1" bench "have certtool && have psktool" "gnutls-bin"   "gnutls-utils"
    "$1" compat "have debootstrap"        "debootstrap"       "debootstrap"
    # Units may only start programs that are there.
    "$1" lint  "have nbdkit"              "nbdkit"            "nbdkit"
    "$1" lint  "have systemd-analyze"     "systemd"           "systemd"
    "$1" lint  "have podchecker && have pod2man" "perl"       "perl-Pod-Checker perl-podlators"
    "$1" lint  "have_rust_lints" "rustfmt|rustfmt-web rust-clippy|rust-web-clippy" "rustfmt clippy"
    "$1" lint  "have shellcheck"          "shellcheck"        "ShellCheck"
    "$1" lint  "[ -x /usr/bin/python3 ]"  "python3"           "python3"
    "$1" dist  "have git"                 "git"               "git"
    "$1" dist  "have xz"                  "xz-utils"          "xz"
    "$1" dist  "[ -x /usr/bin/python3 ]"  "python3"           "python3"
    "$1" deb   "have dpkg-buildpackage"   "dpkg-dev"          "dpkg-dev"
    "$1" deb   "have dh"                  "debhelper"         "debhelper"
    "$1" deb   "have fakeroot"            "fakeroot"          "fakeroot"
    "$1" deb   "have lintian"             "lintian"           "lintian"
    "$1" rpm   "have rpmbuild && have rpm2cpio" "rpm rpm2cpio" "rpm-build"
    "$1" rpm   "have find-debuginfo && have eu-strip" "debugedit elfutils" "debugedit elfutils"
    "$1" rpm   "have rpmlint"             "rpmlint"           "rpmlint"
    "$1" rpm   "have cpio"                "cpio"              "cpio"
}

tried=no
note_missing() { # SET CHECK DEBIAN FEDORA
    [[ " $sets " == *" $1 "* ]] || return 0
    eval "$2" && return 0
    if [ "$2" = have_rust_lints ] && [ $tried = yes ]; then
        echo "deps: there is no rustfmt or no clippy for this Rust here; make lint goes without" >&2
        return 0
    fi
    read -ra names <<<"$3"; debian+=("${names[@]}")
    read -ra names <<<"$4"; fedora+=("${names[@]}")
}

look() { debian=() fedora=(); each_need note_missing; }

# --- installing --------------------------------------------------------------

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

say_what_to_install() {
    echo "deps: $1; please install:" >&2
    echo "  Debian:  apt-get install --no-install-recommends ${debian[*]//|/ or }" >&2
    echo "  Fedora:  dnf install ${fedora[*]}" >&2
    exit 1
}

# Debian starts a daemon as soon as its package is unpacked. policy-rc.d is
# Debian's own way to say no; it is left alone where one exists already.
forbid_services() {
    local policy=/usr/sbin/policy-rc.d
    [ -e $policy ] && return
    printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
    trap 'as_root rm -f /usr/sbin/policy-rc.d; rm -f "$log"' EXIT
    as_root chmod 755 $policy
}

apt() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@" </dev/null
}

# Debian 12 has a newer Rust under a second name. It cannot be beside the old one, and
# whether that goes is for its user to say: nothing is removed here.
new_enough_package() { # NAME|NAME...
    local names name candidate
    IFS='|' read -ra names <<<"$1"
    if [ ${#names[@]} = 1 ]; then
        echo "$1"
        return
    fi
    # What is there already decides for what goes with it.
    if dpkg-query -W rustc-web >/dev/null 2>&1; then
        echo "${names[1]}"
        return
    fi
    for name in "${names[@]}"; do
        candidate=$(apt-cache policy "$name" | sed -n 's/^ *Candidate: //p')
        if [ -n "$candidate" ] && dpkg --compare-versions "$candidate" ge "$oldest_rust"; then
            echo "$name"
            return
        fi
    done
    echo "deps: no package here is new enough: ${names[*]}" >&2
}

apt_install() {
    [ ${#debian[@]} = 0 ] || apt install --no-install-recommends --no-remove "${debian[@]}" >>"$log" 2>&1
}

install_missing() {
    have apt-get || say_what_to_install "packages are missing and there is no apt-get"
    [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null ||
        say_what_to_install "packages are missing and I am not root"
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    had_sshd=no
    if have_sshd; then had_sshd=yes; fi
    # A failed update (say, one dead third-party source) need not be fatal:
    # whether the packages are there is decided by the installation.
    apt update >"$log" 2>&1 || true
    mapfile -t debian < <(for names in "${debian[@]}"; do new_enough_package "$names"; done)
    echo "deps: installing ${debian[*]}"
    forbid_services
    apt_install || { tail -n 20 "$log" >&2; say_what_to_install "apt-get failed"; }
    # The tests start their own nbd-server and sshd; the system's shall not come up at boot.
    if [[ " ${debian[*]} " == *" nbd-server "* ]]; then
        as_root update-rc.d nbd-server disable >/dev/null 2>&1 || true
    fi
    if [[ " ${debian[*]} " == *" openssh-server "* && $had_sshd = no ]]; then
        as_root update-rc.d ssh disable >/dev/null 2>&1 || true
    fi
}

# --- Rust by rustup is the user's own choice ----------------------------------

# What rustup brought, rustup brings up to date.
by_rustup() { have rustup && [ "$(command -v cargo)" = "$(dirname "$(command -v rustup)")/cargo" ]; }

look_at_rustup() {
    by_rustup || return 0
    if [[ " $sets " == *" build "* ]]; then
        have_rust || die "this needs Rust $oldest_rust or later: rustup update"
    fi
    if [[ " $sets " == *" lint "* ]] && ! have_rust_lints; then
        rustup component add rustfmt clippy || die "rustfmt and clippy are missing"
    fi
}

# Two minutes of compiling once, so only where the word of lint is the last one. It needs a newer
# Rust than we do; elsewhere lint uses it if somebody has installed it.
deny_version=0.20.2 deny_rust=1.88
look_at_cargo_deny() {
    if [[ " $sets " != *" lint "* ]] || [ -z "${CI:-}" ] || cargo deny --version >/dev/null 2>&1; then
        return 0
    fi
    by_rustup && oldest_rust=$deny_rust new_enough rustc || return 0
    echo "deps: installing cargo-deny"
    cargo install --locked --quiet --no-default-features --version $deny_version cargo-deny ||
        die "cannot install cargo-deny"
}

sets="$*"
for set in "$@"; do
    [[ $set =~ ^(build|run|test|lint|nbdkit|compat|bench|dist|deb|rpm)$ ]] ||
        die "unknown set '$set' (build, run, test, lint, nbdkit, compat, bench, dist, deb, rpm)"
done

look_at_rustup
look
if [ ${#debian[@]} -gt 0 ]; then
    install_missing
    tried=yes
    look
    [ ${#debian[@]} = 0 ] || say_what_to_install "still missing after the installation"
fi
look_at_cargo_deny
