#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Stands for nbdkit in the tests of scripts/check-nbdkit.sh: called as nbdkit, it runs the command that
# it was given out of sight, and in front of that an nbdkit that forwards to it with dynamic-export=true.
# So a test of anything in nbdkit becomes a test of what the plugin lets through of it.
#
#     NBDKIT=PROGRAM    the real nbdkit
#     PLUGIN=FILE       the plugin
#     RETRY=front       the retry filter is for the front, too
#
# What is about listening, clients and going into the background is for the front; filters, the plugin and
# its parameters for the server behind it.
set -euo pipefail

: "${NBDKIT:?}" "${PLUGIN:?}"

front=() parameters=() behind=() stdio=no foreground=no
while [ $# -gt 0 ]; do
    case ${RETRY:-behind}:$1 in
    front:--filter=retry) front+=("$1") && shift && continue ;;
    front:retries=* | front:retry-delay=* | front:retry-exponential=* | front:retry-readonly=*) parameters+=("$1") && shift && continue ;;
    esac
    case $1 in
    -U | --unix | -P | --pidfile | -p | --port | -i | --ip-addr | --ipaddr | -e | --export | --export-name | --run)
        front+=("$1" "$2")
        case $1 in --run) foreground=yes ;; esac
        shift
        ;;
    --unix=* | --pidfile=* | --port=* | --ip-addr=* | --ipaddr=* | --export=* | --export-name=*) front+=("$1") ;;
    --run=*) front+=("$1") foreground=yes ;;
    -s | --single | --stdin) front+=("$1") stdio=yes foreground=yes ;;
    -f | --foreground | --no-fork) front+=("$1") foreground=yes ;;
    -o | --oldstyle | -n | --newstyle | --no-sr) front+=("$1") ;;
    --tls=* | --tls-*=*) front+=("$1") ;;
    -r | --readonly | --read-only | -v | --verbose) front+=("$1") behind+=("$1") ;;
    # It answers a question, and serves nobody.
    --help | -V | --version | --dump-config | --dump-plugin | --exit-with-parent) exec "$NBDKIT" "$@" ;;
    -D | --debug | -t | --threads | -u | --user | -g | --group) behind+=("$1" "$2") && shift ;;
    *) behind+=("$1") ;;
    esac
    shift
done

place=$(mktemp -d /tmp/behind.XXXXXX)
front+=("$PLUGIN" "socket=$place/sock" dynamic-export=true "${parameters[@]}")

# The script of `sh -` comes on standard input, which with -s is the client.
exec 3<&0
[ $stdio = no ] || exec 3</dev/null

# The server, until PROGRAM has ended.
serve_for() { # PROGRAM...
    local server status=0
    "$NBDKIT" -f -U "$place/sock" -P "$place/pid" "${behind[@]}" <&3 >/dev/null &
    server=$!
    until [ -s "$place/pid" ]; do
        kill -0 "$server" 2>/dev/null || break
        sleep 0.05
    done
    if [ -s "$place/pid" ]; then "$@" || status=$?; else wait "$server" || status=$?; fi
    kill "$server" 2>/dev/null || true
    wait "$server" || true
    rm -rf "$place"
    return $status
}

if [ $foreground = yes ]; then
    serve_for "$NBDKIT" "${front[@]}"
    exit
fi

# In the background: until the front has ended, which is told by the file with its process id.
pidfile=
for ((i = 0; i < ${#front[@]}; i++)); do
    case ${front[i]} in
    -P | --pidfile) pidfile=${front[i + 1]} ;;
    --pidfile=*) pidfile=${front[i]#*=} ;;
    esac
done
# shellcheck disable=SC2317,SC2329 # serve_for calls it
behind_daemon() {
    local pid i
    "$NBDKIT" "${front[@]}" || { echo $? >"$place/started" && return; }
    echo 0 >"$place/started.new"
    # The front writes it once it is in the background.
    for ((i = 0; i < 200; i++)); do
        [ ! -s "$pidfile" ] || break
        sleep 0.05
    done
    pid=$(cat "$pidfile")
    mv "$place/started.new" "$place/started"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.2; done
}
serve_for behind_daemon &
until [ -e "$place/started" ] || ! kill -0 $! 2>/dev/null; do sleep 0.05; done
exit "$(cat "$place/started" 2>/dev/null || echo 1)"
