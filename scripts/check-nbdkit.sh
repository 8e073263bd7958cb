#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Runs nbdkit's own tests of its nbd plugin twice, with its plugin and with
# ours in its place, and compares: what passes there has to pass here. Then some
# tests of other things once more, without the plugin and through it: see
# scripts/nbdkit-behind-front.sh.
#
#     NBDKIT_SRC=DIR     a source tree of nbdkit, which is only read
#     PLUGIN=FILE        check this plugin instead of building ours
#     REFERENCE=FILE     compare with this one (default: the distribution's)
#     TESTS="NAME..."    only these (default: every test script that uses the plugin)
#     BEHIND="NAME..."   only these through the plugin (default: those that count who comes)
#     RETRIED="NAME..."  only these with the retry filter before the plugin (default: all of it)
#     LOGS=DIR           what the tests said (default: target/check-nbdkit)
set -euo pipefail
cd "$(dirname "$0")/.."

limit=180 # seconds for one test; some of them sleep

die() { echo "check-nbdkit: $*" >&2; exit 2; }

# --- what is compared --------------------------------------------------------------

[ -n "${NBDKIT_SRC:-}" ] || die "say where nbdkit's source is: make check-nbdkit NBDKIT_SRC=DIR"
src=$(realpath "$NBDKIT_SRC")
[ -f "$src/tests/functions.sh.in" ] || die "no source tree of nbdkit: $src"
nbdkit=$(command -v nbdkit) || die "nbdkit is missing"
slot=$(nbdkit --dump-config | sed -n 's/^plugindir=//p')/nbdkit-nbd-plugin.so

if [ -n "${PLUGIN:-}" ]; then
    ours=$(realpath "$PLUGIN")
else
    scripts/cargo.sh build --release --locked
    ours=$(realpath "${CARGO_TARGET_DIR:-target}/release/libnbdkit_nbd_plugin.so")
fi
# `make install` moves the distribution's plugin aside under this name.
reference=${REFERENCE:-$slot}
[ -n "${REFERENCE:-}" ] || [ ! -e "$slot.distrib" ] || reference=$slot.distrib
for plugin in "$ours" "$reference"; do
    [ -f "$plugin" ] || die "there is no plugin at $plugin"
done
nbdkit "$reference" --dump-plugin | grep -q '^libnbd_version=' ||
    die "$reference is not nbdkit's own plugin: set REFERENCE"

logs=${LOGS:-${CARGO_TARGET_DIR:-target}/check-nbdkit}
mkdir -p "$logs"
logs=$(realpath "$logs")

# Sockets live below, and their paths have to be short.
work=$(mktemp -d /tmp/check-nbdkit.XXXXXX)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# --- a copy of the tests as nbdkit's own build would leave it -------------------------

# The few things that configure would fill in. What a newer release may add is
# most likely the name of a program.
configure() { # FILE.in
    sed -e "s|@abs_top_srcdir@|$src|g" -e 's|@PYTHON@|/usr/bin/python3|g' \
        -e 's|@SOEXT@|so|g' -e 's|@EXEEXT@||g' \
        -e 's|@plugins@|nbd|g' -e 's|@top_builddir@|..|g' \
        -e 's|@configure_input@||g' -e 's|@\([A-Z_]\+\)@|\L\1|g' "$1" >"${1%.in}"
    chmod +x "${1%.in}"
}

# Test fixtures: a test skips when its fixture could not be made.
make_fixtures() (
    cd "$work/tree/tests"
    export SRCDIR=.
    ./make-psk.sh
    [ ! -f make-pki.sh ] || ./make-pki.sh
    printf '\1\2\3\4\5\6\7\10%.0s' {1..512} >file-data
    mkdir disk.tmp
    printf hello,world >disk.tmp/hello.txt
    # shellcheck disable=SC2016 # nbdkit's shell expands it
    nbdkit -U - linuxdisk disk.tmp size=100M --run 'qemu-img convert "$nbd" disk' ||
        rm -f disk
)

make_tree() {
    mkdir -p "$work/tree/plugins/nbd/.libs"
    # The tests over all plugins look for the built file to know which there are.
    touch "$work/tree/plugins/nbd/.libs/nbdkit-nbd-plugin.so"
    cp -R "$src/tests" "$work/tree/tests"
    mkdir "$work/tree/front"
    cp scripts/nbdkit-behind-front.sh "$work/tree/front/nbdkit"
    local template
    for template in "$work"/tree/tests/{functions,make-pki}.sh.in; do
        [ ! -f "$template" ] || configure "$template"
    done
    make_fixtures >"$logs/fixtures.log" 2>&1 </dev/null ||
        echo "not every fixture could be made (see $logs/fixtures.log)"
}

# Scripts with the word nbd where a plugin's name stands, or over all plugins.
tests_of_the_plugin() {
    cd "$work/tree/tests"
    grep -lE '^[^#]*(^|[[:space:]])(nbd([[:space:]]|$)|foreach_plugin )' test-*.sh |
        xargs grep -LE 'requires nbd-client|nbdkit-.*-plugin\.pod'
}

# --- running one of them ----------------------------------------------------------------

# With namespaces of its own, a test sees the plugin under test where nbdkit's
# own is, has /tmp for itself, and takes every process with it when it ends.
own=(unshare --mount --propagation private --pid --fork --kill-child --mount-proc)
as_user=("${own[@]}" --user --map-root-user)
if "${own[@]}" -- true 2>/dev/null; then
    isolate=("${own[@]}")
elif "${as_user[@]}" -- true 2>/dev/null; then
    isolate=("${as_user[@]}")
else
    isolate=()
fi

# In the foreground, so that Ctrl-C reaches the test; then only the first process
# is killed for being late, and the others go as they do after every test.
late=(timeout --foreground --signal=KILL "$limit")

# PATH puts the system's python3 first, because nbdsh needs that one.
settings=(PATH=/usr/sbin:/usr/bin:/sbin:/bin:"$(dirname "$nbdkit")" HOME=/nonexistent
    LC_ALL=C.UTF-8 SRCDIR=. LIBNBD_DEBUG=1 GLIBC_TUNABLES=glibc.malloc.perturb=165)

# What stands for nbdkit where a test is to go through the plugin.
through() { # WHICH PLUGIN TREE
    local where=front
    case $1 in
    behind) where=behind ;;
    retried) ;;
    *) return 0 ;;
    esac
    echo "NBDKIT=$nbdkit" "PLUGIN=$2" "RETRY=$where" "PATH=$3/front:${settings[0]#PATH=}"
}

# shellcheck disable=SC2016 # the inner shell expands these
run_isolated() { # WHICH PLUGIN TEST TREE
    local through
    read -ra through < <(through "$1" "$slot" /tmp) || true
    "${late[@]}" "${isolate[@]}" -- "$BASH" -euc '
        mount --bind "$1" "$2"
        mount --bind "$3" /tmp
        cd /tmp/tests
        shift 3
        "$@"
    ' init "$2" "$slot" "$4" env -i "${settings[@]}" "${through[@]}" "$BASH" "./$3"
}

# Where namespaces are not allowed, a program named nbdkit says which plugin.
run_wrapped() { # WHICH PLUGIN TEST TREE
    local status=0 which=$1 through
    shift
    read -ra through < <(through "$which" "$1" "$3") || true
    mkdir "$3/bin"
    cat >"$3/bin/nbdkit" <<END
#!/bin/bash
for i in \$(seq \$#); do
    if [ "\${!i}" = nbd ]; then set -- "\${@:1:i-1}" "$1" "\${@:i+1}"; break; fi
done
exec "$nbdkit" "\$@"
END
    chmod +x "$3/bin/nbdkit"
    cd "$3/tests"
    "${late[@]}" env -i "${settings[@]}" CHECK_NBDKIT="$3" \
        PATH="$3/bin:${settings[0]#PATH=}" "${through[@]}" "$BASH" "./$2" || status=$?
    end_processes_of "$3"
    return $status
}

# The tests' servers are daemons; the environment tells whose they are.
end_processes_of() { # TREE
    local environment
    grep -lazxs "CHECK_NBDKIT=$1" /proc/[0-9]*/environ | while read -r environment; do
        kill -KILL "$(basename "$(dirname "$environment")")" 2>/dev/null || true
    done
}

run() { # WHICH PLUGIN TEST: pass, skip, fail or timeout
    local log=$logs/$1/${3%.sh}.log tree status=0
    mkdir -p "$logs/$1"
    tree=$(mktemp -d "$work/run.XXXXXX")
    cp -R --sparse=always "$work/tree/." "$tree"
    if [ ${#isolate[@]} -gt 0 ]; then
        run_isolated "$1" "$2" "$3" "$tree" >"$log" 2>&1 </dev/null || status=$?
    else
        (run_wrapped "$1" "$2" "$3" "$tree") >"$log" 2>&1 </dev/null || status=$?
    fi
    rm -rf "$tree"
    case $status in
    0) echo pass ;;
    77) echo skip ;;
    137) echo timeout ;;
    *) echo fail ;;
    esac
}

# --- the report -----------------------------------------------------------------------------

# Why a test skipped is the last thing it said; why it failed, a complaint at the
# end, or else the last command. Debug messages and the shell's trace are no
# complaints. Of two lines about a missing program the second repeats the first.
reason() { # WHICH TEST RESULT
    local log=$work/log said
    sed '/^+ _run_cleanup_hooks/,$d' "$logs/$1/${2%.sh}.log" >"$log"
    said=$(grep -avE '^\++ |debug: |prerequisite is missing|run cleanup hooks' "$log")
    [ "$3" = skip ] || said=$(tail -n 3 <<<"$said" | grep -aiE 'error|assert|fail') ||
        said=$(grep -a '^+ ' "$log")
    said=${said##*$'\n'}
    said=${said#"./$2: "}
    echo "${said:0:120}"
}

make_tree
if [ -n "${TESTS:-}" ]; then
    tests=$TESTS
else
    tests=$(tests_of_the_plugin)
fi
# They count connections, opens and requests, and so what is asked of a server on the way to them.
behind=${BEHIND-$(printf 'test-%s.sh ' fua log log-error log-script retry retry-extents \
    retry-readonly retry-request-open retry-size retry-zero-flags)}
# These once more with the retry filter in the front, which opens the plugin anew, and the one that
# wants a client to see NBD_ESHUTDOWN: where that comes from the server, the plugin goes on over another
# connection, as the protocol demands, and the client sees nothing.
retried=${RETRIED-$(printf 'test-retry%s.sh ' '' -extents -readonly -reopen-fail -request-open -size \
    -zero-flags)}
[ -n "$tests" ] || die "no test in $src/tests uses the nbd plugin"
[ ${#isolate[@]} -gt 0 ] || echo "without namespaces: a wrapper named nbdkit is used instead"

passed=0 failed=0 skipped=0
line() { printf '%-30s %-9s %-9s %s\n' "$@"; }

# What passes in the first way has to pass in the second.
compare() { # WHICH WHICH TEST
    local theirs mine why=
    theirs=$(run "$1" "$reference" "$3")
    mine=$(run "$2" "$ours" "$3")
    [ "$mine" = pass ] || why=$(reason "$2" "$3" "$mine" || true)
    case $theirs,$mine in
    *,pass) passed=$((passed + 1)) ;;
    pass,*) failed=$((failed + 1)) why="OURS: $why" ;;
    *) skipped=$((skipped + 1)) ;;
    esac
    line "$3" "$theirs" "$mine" "$why"
}

line test nbdkit ours reason
for test in $tests; do compare nbdkit ours "$test"; done
line test alone behind reason
for test in $behind; do compare alone behind "$test"; done
line test alone retried reason
for test in $retried; do compare alone retried "$test"; done
echo "$passed passed, $failed failed, $skipped skipped (or failed with both); logs: $logs"
# A run in which everything was skipped has shown nothing.
[ $failed = 0 ] && [ $passed -gt 0 ]
