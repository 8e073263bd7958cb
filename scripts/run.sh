#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Shows the plugin at work: a server, the plugin in front of it, a client's view
# and a verified copy; then it stays until Ctrl-C.
#
#     ONCE=1          end after the copy, with status 0 if it was right
#     UPSTREAM=SOCK   forward this NBD server instead of an embedded one
#     PLUGIN=FILE     load this plugin instead of building ours
set -euo pipefail
cd "$(dirname "$0")/.."

# A foreign disk may be huge: a larger one is served but not copied.
copy_limit=$((1024 * 1024 * 1024))

say() { echo "==> $*"; }
die() { echo "run: $*" >&2; exit 1; }

# --- everything that is started or made goes away on every exit ---------------

pids=()
dir=
# shellcheck disable=SC2317,SC2329 # the trap below calls it
clean_up() {
    trap '' INT TERM HUP
    local deadline=$((SECONDS + 10))
    # The plugin's server ends first, so that it can still say goodbye upstream.
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
        kill "${pids[i]}" 2>/dev/null || continue
        while kill -0 "${pids[i]}" 2>/dev/null && [ "$SECONDS" -lt "$deadline" ]; do
            sleep 0.02
        done
        kill -KILL "${pids[i]}" 2>/dev/null || true
        wait "${pids[i]}" 2>/dev/null || true
    done
    [ -z "$dir" ] || rm -rf "$dir"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The paths of Unix sockets must be short, and these go into URIs as they are.
base=${TMPDIR:-/tmp}
[[ $base =~ ^/[A-Za-z0-9/._-]{1,60}$ ]] || base=/tmp
dir=$(mktemp -d "$base/nbdkit-nbd.XXXXXX")
upstream=$dir/upstream.sock
front=$dir/front.sock
upstream_uri="nbd+unix:///?socket=$upstream"
uri="nbd+unix:///?socket=$front"

# start NAME SOCKET COMMAND...: a server is ready when its socket is there.
start() {
    local name=$1 socket=$2 deadline=$((SECONDS + 30)) pid
    shift 2
    "$@" >"$dir/$name.log" 2>&1 &
    pid=$!
    pids+=("$pid")
    until [ -S "$socket" ]; do
        kill -0 "$pid" 2>/dev/null || fail "$name ended at its start"
        [ "$SECONDS" -lt "$deadline" ] || fail "$name did not start within 30 s"
        sleep 0.05
    done
}

fail() { # with what the servers said
    cat "$dir"/*.log >&2
    die "$*"
}

# --- the server that is forwarded ---------------------------------------------

# Text, random data, a program, and holes between them.
make_disk() { # FILE
    cp README.md "$1"
    dd if=/dev/urandom of="$1" bs=1M count=8 seek=8 conv=notrunc status=none
    dd if="$(command -v nbdcopy)" of="$1" bs=1M seek=32 conv=notrunc status=none
    truncate -s 64M "$1"
}

embed_server() {
    make_disk "$dir/disk.raw"
    if command -v qemu-nbd >/dev/null && command -v qemu-img >/dev/null; then
        say "upstream: a qcow2 disk in qemu-nbd"
        qemu-img convert -f raw -O qcow2 "$dir/disk.raw" "$dir/disk.qcow2"
        start upstream "$upstream" \
            qemu-nbd -f qcow2 --persistent --shared=8 -k "$upstream" "$dir/disk.qcow2"
    else
        say "upstream: nbdkit memory, as there is no qemu-nbd"
        start upstream "$upstream" nbdkit -f -U "$upstream" memory 64M
        nbdcopy "$dir/disk.raw" "$upstream_uri"
    fi
}

# --- the steps ------------------------------------------------------------------

if [ -n "${PLUGIN:-}" ]; then
    plugin=$(realpath "$PLUGIN")
else
    scripts/cargo.sh build --release --locked
    plugin=$(realpath "${CARGO_TARGET_DIR:-target}/release/libnbdkit_nbd_plugin.so")
fi
[ -f "$plugin" ] || die "there is no plugin at $plugin"

if [ -n "${UPSTREAM:-}" ]; then
    [ -S "$UPSTREAM" ] || die "UPSTREAM=$UPSTREAM is not a Unix socket"
    say "upstream: $UPSTREAM"
    ln -s "$(realpath "$UPSTREAM")" "$upstream"
    hint=" (does the server accept one client after the other?)"
else
    embed_server
    hint=
fi

say "nbdkit $plugin socket=$upstream"
start nbdkit "$front" nbdkit -f -U "$front" "$plugin" socket="$upstream"

say "nbdinfo $uri"
nbdinfo "$uri" || fail "nbdinfo failed$hint"
size=$(nbdinfo --size "$uri") || fail "nbdinfo --size failed$hint"

if [ -n "${UPSTREAM:-}" ] && [ "$size" -gt $copy_limit ]; then
    say "no copy: the disk's $size bytes are over this script's limit of $copy_limit"
else
    say "nbdcopy $uri copy.raw"
    nbdcopy "$uri" "$dir/copy.raw" || fail "nbdcopy failed$hint"
    [ -e "$dir/disk.raw" ] || nbdcopy "$upstream_uri" "$dir/disk.raw" ||
        fail "the copy for comparison, straight from $UPSTREAM, failed$hint"
    cmp "$dir/disk.raw" "$dir/copy.raw" || fail "the copy differs from the source"
    say "verified: all $size bytes of the copy equal the source"
fi

case ${ONCE:-} in '' | 0) ;; *) exit 0 ;; esac

rm -f "$dir/disk.raw" "$dir/copy.raw"
# From here on, being told to end is how it should end.
trap 'echo; exit 0' INT
trap 'exit 0' TERM HUP
cat <<END

Serving until Ctrl-C:  $uri

Try:  nbdinfo '$uri'
      qemu-img info '$uri'
      nbdcopy '$uri' disk.img
END
wait -n "${pids[@]}" || true
fail "a server ended by itself"
