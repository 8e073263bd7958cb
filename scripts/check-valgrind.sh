#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A smoke test under valgrind: nbdkit with the plugin opens, reads, writes, flushes and ends, plain, over TLS, with
# a server that is killed and comes back, and with clients that share a connection. No error, and nothing lost.
#
# The plugin is that of `make build`; PLUGIN= names another. Nothing is suppressed: neither nbdkit nor OpenSSL
# needs it today.
set -euo pipefail
cd "$(dirname "$0")/.."

plugin=${PLUGIN:-${CARGO_TARGET_DIR:-target}/release/libnbdkit_nbd_plugin.so}
[ -f "$plugin" ] || { echo "check-valgrind: not built: $plugin" >&2; exit 1; }
plugin=$(realpath "$plugin")
work=$(mktemp -d)
pids=()
clean() {
    for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap clean EXIT
cd "$work"

wait_for() { # FILE: until it is there; PID files are written when nbdkit listens
    for _ in $(seq 600); do
        [ ! -s "$1" ] || return 0
        sleep 0.1
    done
    echo "check-valgrind: no $1 after a minute" >&2
    return 1
}

serve() { # NAME ARG...: a server on NAME.sock
    local name=$1
    shift
    rm -f "$name.pid" "$name.sock"
    nbdkit -f -U "$name.sock" -P "$name.pid" "$@" 2>"$name.log" &
    pids+=($!)
    wait_for "$name.pid"
}

cat >client.py <<'PY'
import sys, nbd
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_unix(sys.argv[1])
block = bytes(range(256)) * 20
h.pwrite(block, 100)
assert h.pread(len(block), 100) == block
h.pwrite(block, 16384, nbd.CMD_FLAG_FUA)
h.zero(4096, 8192)
h.trim(4096, 0)
h.cache(4096, 0)
h.block_status(1 << 20, 0, lambda *rest: 0)
h.flush()
open("ready", "w").write("x")
if len(sys.argv) > 2:
    # Meanwhile the server is another one.
    sys.stdin.readline()
    h.pwrite(block, 32768)
    assert h.pread(len(block), 32768) == block
    h.flush()
h.shutdown()
PY

under() { # NAME ARG...: nbdkit with the plugin, under valgrind, on front.sock
    local name=$1
    shift
    rm -f front.pid front.sock
    # A process that nbdkit starts is not followed. The plugin stays mapped, so that stacks have names.
    valgrind --leak-check=full --show-leak-kinds=definite,indirect \
        --errors-for-leak-kinds=definite,indirect --error-exitcode=99 \
        --keep-debuginfo=yes --child-silent-after-fork=yes --log-file="$name.valgrind" \
        nbdkit -f -U front.sock -P front.pid "$plugin" "$@" 2>"$name.log" &
    front=$!
    pids+=("$front")
    wait_for front.pid
}

ends() { # NAME: nbdkit ends well, and valgrind is content
    kill -TERM "$(cat front.pid)"
    local status=0
    wait "$front" || status=$?
    # Valgrind has seen the end of it, and has found nothing.
    if [ "$status" != 0 ] || ! grep -q 'ERROR SUMMARY: 0 errors' "$1.valgrind" ||
        ! grep -qE 'definitely lost: 0 bytes|no leaks are possible' "$1.valgrind"; then
        echo "check-valgrind: $1: status $status" >&2
        cat "$1.log" "$1.valgrind" >&2
        exit 1
    fi
    echo "check-valgrind: $1: nothing found"
}

client() { /usr/bin/python3 client.py front.sock "$@"; }

serve server memory 1M
under plain socket=server.sock
client; client
ends plain

under shared socket=server.sock shared=true
client & client; wait $!
ends shared

under refused socket=nobody.sock
if client 2>/dev/null; then echo "check-valgrind: nobody was to be reached" >&2; exit 1; fi
ends refused

psktool -u alice -p keys.psk >/dev/null 2>&1
serve secure --tls=require --tls-psk="$work/keys.psk" memory 1M
under tls socket=secure.sock tls=require tls-psk="$work/keys.psk" tls-username=alice
client; client
ends tls

under reconnect socket=server.sock reconnect=60 reconnect-delay=10ms
rm -f ready
mkfifo go
client again <go &
waiting=$!
exec 7>go
wait_for ready
kill -KILL "$(cat server.pid)"
serve server memory 1M
echo >&7
exec 7>&-
wait "$waiting"
ends reconnect
