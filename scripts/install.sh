#!/bin/bash
# Installs or removes the release build and its manual page.
#
#     scripts/install.sh install|uninstall
#
#     NAME=nbd        nbdkit finds the plugin as `nbdkit NAME`
#     PLUGINDIR=DIR   default: what `pkg-config --variable=plugindir nbdkit` says
#     MANDIR=DIR      default: /usr/local/share/man
#     DESTDIR=DIR     put before both, for packaging
#
# The distribution has an nbd plugin of the same name. Its file is moved aside,
# never overwritten, and comes back with uninstall.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { echo "install: $*" >&2; exit 1; }

name=${NAME:-nbd}
[[ $name =~ ^[A-Za-z0-9-]+$ ]] || die "NAME=$name is no plugin name"
plugin_dir=${PLUGINDIR:-$(pkg-config --variable=plugindir nbdkit)} ||
    die "cannot ask pkg-config for nbdkit's plugin directory: set PLUGINDIR"
plugin=${DESTDIR:-}$plugin_dir/nbdkit-$name-plugin.so
page=${DESTDIR:-}${MANDIR:-/usr/local/share/man}/man1/nbdkit-$name-plugin.1
built=${CARGO_TARGET_DIR:-target}/release/libnbdkit_nbd_plugin.so

of_dpkg() { command -v dpkg-query >/dev/null && dpkg-query -S "$1" >/dev/null 2>&1; }
of_rpm() { command -v rpm >/dev/null && rpm -qf "$1" >/dev/null 2>&1; }

# Debian diverts, so that an upgrade of nbdkit does not replace ours.
move_aside() {
    if [ -e "$plugin.distrib" ] || [ ! -e "$plugin" ]; then
        return
    elif of_dpkg "$plugin"; then
        dpkg-divert --local --rename --divert "$plugin.distrib" --add "$plugin"
    elif of_rpm "$plugin"; then
        mv -v "$plugin" "$plugin.distrib"
    fi
}

bring_back() {
    [ -e "$plugin.distrib" ] || return 0
    if of_dpkg "$plugin"; then
        dpkg-divert --local --rename --remove "$plugin"
    else
        mv -v "$plugin.distrib" "$plugin"
    fi
}

case ${1:-} in
install)
    [ -f "$built" ] || die "there is no $built: run 'make build' first"
    move_aside
    install -D -m 755 "$built" "$plugin"
    echo "installed $plugin"
    if command -v pod2man >/dev/null; then
        scripts/man.sh "$name" "$page"
        echo "installed $page"
    else
        echo "no manual page: pod2man is missing (Debian: perl, Fedora: perl-podlators)"
    fi
    ;;
uninstall)
    rm -fv "$plugin" "$page"
    bring_back
    ;;
*)
    die "usage: $0 install|uninstall"
    ;;
esac
