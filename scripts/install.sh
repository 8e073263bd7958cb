#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Installs or removes the release build, nbdkit-nbdctl, and the pages of their manual.
#
#     scripts/install.sh install|uninstall
#
#     NAME=nbd        nbdkit finds the plugin as `nbdkit NAME`
#     PREFIX=DIR      default: that of nbdkit for the plugin, /usr/local for the pages
#     PLUGINDIR=DIR   default: what `pkg-config --variable=plugindir nbdkit` says
#     MANDIR=DIR      default: PREFIX/share/man
#     BINDIR=DIR      for nbdkit-nbdctl, default: PREFIX/bin
#     DESTDIR=DIR     put before all of them, for packaging
#
# prefix, plugindir, mandir and bindir are other spellings. nbdkit-nbdctl goes with the last NAME of the plugin that
# is uninstalled from PLUGINDIR.
#
# The distribution has an nbd plugin of the same name. Whatever is not ours is
# set aside as FILE.distrib, and comes back with uninstall, also where ours is
# gone already. What belongs to dpkg is diverted, so that an upgrade of nbdkit
# does not replace ours.
set -euo pipefail
export LC_ALL=C
# Others than root shall be able to read what root installs.
umask 022

die() { echo "install: $*" >&2; exit 1; }

# A setting that comes as an argument would be a surprise: make has put it into the environment.
[ $# = 1 ] || die "usage: [NAME=nbd ...] $0 install|uninstall"

# The plugin and its pages have these characters, and nobody else's have.
mark=nbd_client=rust/

# --- where: everything below works on canonical names ----------------------------

started_in=$PWD
cd "$(dirname "$0")/.."
absolute() { (cd "$started_in" && realpath -m -- "$1"); }

either() { # VARIABLE variable
    local upper=${!1:-} lower=${!2:-}
    [ -z "$upper" ] || [ -z "$lower" ] || [ "$upper" = "$lower" ] ||
        die "$1=$upper and $2=$lower contradict each other"
    echo "${upper:-$lower}"
}

# nbdkit's directory of plugins below another prefix; it may have spaces.
plugin_dir_below() { # PREFIX
    local dir
    dir=$(pkg-config --define-variable=prefix=/PREFIX --variable=plugindir nbdkit 2>/dev/null) || dir=
    [[ $dir == /PREFIX/* ]] || dir=/PREFIX/lib/nbdkit/plugins
    echo "$1${dir#/PREFIX}"
}

own_plugin_dir() { pkg-config --variable=plugindir nbdkit 2>/dev/null; }

inside_destdir() { # DIRECTORY
    [[ $1 == /* ]] || die "$1 must be an absolute path (a relative DESTDIR is fine)"
    local dir
    dir=$(realpath -m -- "$destdir$1")
    [[ -z $destdir || $dir/ == "${destdir%/}"/* ]] || die "$1 leads out of DESTDIR=$destdir, to $dir"
    echo "$dir"
}

name=${NAME:-nbd}
[[ $name =~ ^[A-Za-z0-9-]+$ ]] || die "NAME=$name is no plugin name"
prefix_given=$(either PREFIX prefix)
plugin_dir=$(either PLUGINDIR plugindir)
man_dir=$(either MANDIR mandir)
bin_dir=$(either BINDIR bindir)
destdir=${DESTDIR:+$(absolute "$DESTDIR")}
if [ -z "$plugin_dir" ] && [ -n "$prefix_given" ]; then
    plugin_dir=$(plugin_dir_below "$prefix_given")
elif [ -z "$plugin_dir" ]; then
    plugin_dir=$(own_plugin_dir) || true
    [ -n "$plugin_dir" ] ||
        die "cannot ask pkg-config for nbdkit's directory of plugins: set PLUGINDIR"
fi
plugin_dir=$(inside_destdir "$plugin_dir")
man_dir=$(inside_destdir "${man_dir:-${prefix_given:-/usr/local}/share/man}")
bin_dir=$(inside_destdir "${bin_dir:-${prefix_given:-/usr/local}/bin}")
plugin=$plugin_dir/nbdkit-$name-plugin.so
program=$bin_dir/nbdkit-nbdctl
pages=(plugin plugin-examples nbdctl)
page_file() { # PAGE
    case $1 in
    nbdctl) echo "$man_dir/man1/nbdkit-nbdctl.1" ;;
    *) echo "$man_dir/man1/nbdkit-$name-$1.1" ;;
    esac
}
release=$(absolute "${CARGO_TARGET_DIR:-$PWD/target}")/release
built=$release/libnbdkit_nbd_plugin.so
built_program=$release/nbdkit-nbdctl

# --- whose a file is -----------------------------------------------------------------

there() { [ -e "$1" ] || [ -L "$1" ]; }
marked() { [ -f "$1" ] && [ ! -L "$1" ] && grep -aqF "$mark" -- "$1"; }

# dpkg may know the file by another name: /lib/FILE for what is in /usr/lib.
spelling_of() { # FILE, names on stdin
    local name found=
    while IFS= read -r name; do
        [ "$(realpath -m -- "$(dirname -- "$name")")/$(basename -- "$name")" != "$1" ] || found=$name
    done
    [ -n "$found" ] && echo "$found"
}

packaged_by_dpkg() { # FILE: prints dpkg's name of it
    command -v dpkg-divert >/dev/null || return 1
    { dpkg-query -S "*/$(basename -- "$1")" 2>/dev/null || true; } |
        sed -E '/^(local )?diversion /d; s|^[^/]*: /|/|' | spelling_of "$1"
}

# Only a diversion such as set_aside makes is ours to take away.
diverted() { # FILE: prints dpkg's name of it
    command -v dpkg-divert >/dev/null || return 1
    local name
    name=$(dpkg-divert --list "*/$(basename -- "$1")" |
        sed -n 's/^local diversion of \(.*\) to .*$/\1/p' | spelling_of "$1") || return 1
    [[ $(dpkg-divert --truename "$name") == "$name".distrib* ]] && echo "$name"
}

# A package of ours does it, too: packaging/debian.
diverted_by_package() { # FILE: prints the package
    command -v dpkg-divert >/dev/null || return 1
    local name
    name=$(dpkg-divert --list "*/$(basename -- "$1")" |
        sed -n 's/^diversion of \(.*\) to .* by .*$/\1/p' | spelling_of "$1") || return 1
    dpkg-divert --listpackage "$name"
}

packaged_by_rpm() { command -v rpm >/dev/null && rpm -qf -- "$1" >/dev/null 2>&1; }

# A package may have this very plugin. Then it is the package's, unless what the
# package had there was set aside for ours.
is_ours() { # FILE
    marked "$1" || return 1
    if packaged_by_dpkg "$1" >/dev/null; then
        diverted "$1" >/dev/null
    elif packaged_by_rpm "$1"; then
        there "$1.distrib"
    fi
}

# --- setting aside and bringing back -----------------------------------------------

# FILE.distrib, then FILE.distrib.1 and so on: what was set aside stays.
aside() { # first-free|last FILE
    local number=0 last='' next=$2.distrib
    while there "$next"; do
        last=$next number=$((number + 1))
        next=$2.distrib.$number
    done
    if [ "$1" = last ]; then echo "$last"; else echo "$next"; fi
}

set_aside() { # FILE
    local to known_as
    if is_ours "$1"; then return; fi
    to=$(aside first-free "$1")
    if ! diverted "$1" >/dev/null && known_as=$(packaged_by_dpkg "$1"); then
        dpkg-divert --local --rename --divert "$(dirname -- "$known_as")/$(basename -- "$to")" \
            --add "$known_as"
    elif there "$1"; then
        # With a second name for it, there is no moment without a plugin.
        ln -P -- "$1" "$to" 2>/dev/null || mv -T -- "$1" "$to"
        echo "set aside $1 as $(basename -- "$to")"
    fi
}

put_in_place() { # NEW FILE: nbdkit may be running with the old one
    set_aside "$2"
    mv -fT -- "$1" "$2"
    echo "installed $2"
}

# man shows a page that is compressed rather than one that is not.
suffixes=(gz bz2 xz zst)

compressed() { # PAGE: prints what there is of it
    local suffix
    for suffix in "${suffixes[@]}"; do
        if there "$1.$suffix"; then echo "$1.$suffix"; fi
    done
}

set_aside_compressed() { # PAGE
    local file
    while IFS= read -r file; do
        set_aside "$file"
        # Nothing comes in its place, and it may have two names now.
        rm -f -- "$file"
    done < <(compressed "$1")
}

bring_back_compressed() { # PAGE
    local suffix
    for suffix in "${suffixes[@]}"; do
        if there "$1.$suffix.distrib" || diverted "$1.$suffix" >/dev/null; then remove "$1.$suffix"; fi
    done
}

remove() { # FILE
    local back known_as
    if there "$1" && ! is_ours "$1"; then
        echo "left alone, as it is not ours: $1"
        return
    fi
    back=$(aside last "$1")
    if known_as=$(diverted "$1") && [[ -z $back ||
        $(basename -- "$(dpkg-divert --truename "$known_as")") == "$(basename -- "$back")" ]]; then
        rm -fv -- "$1"
        dpkg-divert --local --rename --remove "$known_as"
    elif [ -n "$back" ]; then
        mv -fT -- "$back" "$1"
        echo "brought back $1"
    else
        rm -fv -- "$1"
    fi
}

# --- all that can be refused is refused before anything is changed ------------------

check_place() { # FILE
    local dir
    dir=$(dirname -- "$1")
    [ -L "$1" ] || [ ! -d "$1" ] || die "$1 is a directory"
    until there "$dir"; do dir=$(dirname -- "$dir"); done
    [ -d "$dir" ] || die "$dir is not a directory"
    [ -w "$dir" ] ||
        die "may not write to $dir: be root, or say where with PREFIX=, PLUGINDIR=, MANDIR=, BINDIR= or DESTDIR="
}

check_owner() { # FILE
    local package
    if package=$(diverted_by_package "$1"); then
        die "the package $package has taken the place of $1: remove it first, or choose a NAME"
    fi
}

new=()
make_new() { # FILE: sets $made, a name beside FILE
    mkdir -p -- "$(dirname -- "$1")"
    made=$(mktemp -- "$(dirname -- "$1")/.$(basename -- "$1").XXXXXX")
    new+=("$made")
}

case ${1:-} in
install)
    for file in "$built" "$built_program"; do
        [ -f "$file" ] || die "there is no $file: run 'make build' first"
        grep -aqF "$mark" -- "$file" || die "$file is not this plugin: run 'make build' again"
    done
    files=("$plugin" "$program")
    command -v pod2man >/dev/null || pages=()
    for page in "${pages[@]}"; do files+=("$(page_file "$page")"); done
    for file in "${files[@]}"; do check_place "$file"; check_owner "$file"; done
    for page in "${pages[@]}"; do
        while IFS= read -r file; do check_owner "$file"; done < <(compressed "$(page_file "$page")")
    done

    trap 'rm -f -- "${new[@]}"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    make_new "$plugin"
    install -m 644 -- "$built" "$made"
    make_new "$program"
    install -m 755 -- "$built_program" "$made"
    for page in "${pages[@]}"; do
        make_new "$(page_file "$page")"
        scripts/man.sh "$name" "$made" "$page"
        chmod 644 -- "$made"
    done
    # From here on it goes through to its end.
    trap '' INT TERM HUP
    for i in "${!files[@]}"; do put_in_place "${new[i]}" "${files[i]}"; done
    for page in "${pages[@]}"; do set_aside_compressed "$(page_file "$page")"; done

    [ ${#pages[@]} -gt 0 ] ||
        echo "no manual pages: pod2man is missing (Debian: perl, Fedora: perl-podlators)"
    if [ -z "$destdir" ] && [ "$(realpath -m -- "$(own_plugin_dir || echo /)")" != "$plugin_dir" ]; then
        echo "nbdkit does not look for plugins there; it takes the path: nbdkit $plugin"
    fi
    ;;
uninstall)
    files=("$plugin")
    other=
    for file in "$plugin_dir"/nbdkit-*-plugin.so; do
        if [ "$file" != "$plugin" ] && is_ours "$file"; then other=$(basename -- "$file"); fi
    done
    for page in "${pages[@]}"; do
        [ "$page" = nbdctl ] || files+=("$(page_file "$page")")
    done
    page=$(page_file nbdctl)
    [ -n "$other" ] || files+=("$program" "$page")
    for file in "${files[@]}" "$page"; do
        [ ! -d "$(dirname -- "$file")" ] || check_place "$file"
    done
    trap 'rm -f -- "${new[@]}"' EXIT
    trap '' INT TERM HUP
    for file in "${files[@]}"; do remove "$file"; done
    for file in "${files[@]}"; do
        if [[ $file == *.1 ]]; then bring_back_compressed "$file"; fi
    done
    # It speaks of the plugin that was the last to come, which may be the one that has gone.
    if [ -n "$other" ] && is_ours "$page" && command -v pod2man >/dev/null; then
        other=${other#nbdkit-}
        make_new "$page"
        scripts/man.sh "${other%-plugin.so}" "$made" nbdctl
        chmod 644 -- "$made"
        mv -fT -- "$made" "$page"
    fi
    ;;
*)
    die "usage: $0 install|uninstall"
    ;;
esac
