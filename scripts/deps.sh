#!/bin/bash
# Installs what building, running, testing or linting this project needs.
#
#     scripts/deps.sh SET...      SET is build, run, test, lint, nbdkit, compat or bench
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

have_sshd() { any_file /usr/sbin/sshd /usr/local/sbin/sshd /sbin/sshd; }

have_fio_nbd() { have fio && fio --enghelp=nbd >/dev/null 2>&1; }

# --- what is needed: function, set, check, Debian packages, Fedora packages --

each_need() {
    "$1" build "have cc && have_libc"     "gcc libc6-dev"     "gcc glibc-devel"
    "$1" build "have pkg-config"          "pkg-config"        "pkgconf-pkg-config"
    "$1" build "have_nbdkit_header"       "nbdkit-plugin-dev" "nbdkit-devel"
    "$1" build "have_libclang"            "libclang-dev"      "clang-devel"
    "$1" build "have_openssl_headers"     "libssl-dev"        "openssl-devel"
    "$1" build "have_certificates"        "ca-certificates"   "ca-certificates"
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
}

note_missing() { # SET CHECK DEBIAN FEDORA
    [[ " $sets " == *" $1 "* ]] || return 0
    eval "$2" && return 0
    read -ra names <<<"$3"; debian+=("${names[@]}")
    read -ra names <<<"$4"; fedora+=("${names[@]}")
}

look() { debian=() fedora=(); each_need note_missing; }

# --- installing --------------------------------------------------------------

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

say_what_to_install() {
    echo "deps: $1; please install:" >&2
    echo "  Debian:  apt-get install --no-install-recommends ${debian[*]}" >&2
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

apt_install() {
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300)
    # A failed update (say, one dead third-party source) need not be fatal:
    # whether the packages are there is decided by the installation.
    as_root "${apt[@]}" update >"$log" 2>&1 || true
    as_root "${apt[@]}" install --no-install-recommends "${debian[@]}" >>"$log" 2>&1 </dev/null
}

install_missing() {
    have apt-get || say_what_to_install "packages are missing and there is no apt-get"
    [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null ||
        say_what_to_install "packages are missing and I am not root"
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    have_sshd && had_sshd=yes || had_sshd=no
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

# --- the Rust side, which is the user's own choice of toolchain ---------------

need_rust() {
    have cargo || die "cargo is missing: install Rust 1.85 or later (https://rustup.rs)"
}

need_rust_lints() {
    cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 && return
    have rustup && rustup component add rustfmt clippy && return
    die "rustfmt or clippy is missing (Debian: rustfmt rust-clippy; Fedora: rustfmt clippy)"
}

sets="$*"
for set in "$@"; do
    [[ $set =~ ^(build|run|test|lint|nbdkit|compat|bench)$ ]] || die "unknown set '$set' (build, run, test, lint, nbdkit, compat, bench)"
done

look
if [ ${#debian[@]} -gt 0 ]; then
    install_missing
    look
    [ ${#debian[@]} = 0 ] || say_what_to_install "still missing after the installation"
fi
if [[ " $sets " == *" build "* ]]; then need_rust; fi
if [[ " $sets " == *" lint "* ]]; then need_rust; need_rust_lints; fi
