#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Makes a page of the manual of the plugin as it was installed.
#
#     scripts/man.sh NAME FILE [PAGE]
#
# PAGE is plugin (the default), plugin-examples, or nbdctl, which is called nbdkit-nbdctl whatever the
# plugin is called. A FILE that ends in .html is made for browsers.
set -euo pipefail
cd "$(dirname "$0")/.."

name=$1 file=$2 page=${3:-plugin}
case $page in
nbdctl) source=nbdkit-nbdctl.pod title=nbdkit-nbdctl ;;
*) source=nbdkit-nbd-$page.pod title=nbdkit-$name-$page ;;
esac
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

# Names of its own that another name of the plugin does not change: nbd://, -D nbd.verbose,
# the directory nbdkit-nbd-XXXXXX. In examples the plugin's name is a word of its own.
renamed() {
    sed -E -e "s/nbdkit-nbd-plugin/nbdkit-$name-plugin/g" -e "s/\bnbdkit nbd\b/nbdkit $name/g" \
        -e "/^ /s/ nbd( |\$)/ $name\1/g" "$source"
}

troff() {
    local changed=@${SOURCE_DATE_EPOCH:-$(stat -c %Y "$source")}
    pod2man --utf8 --section=1 --name="${title^^}" --center="nbdkit plugins" \
        --release="$version" --date="$(date -u -d "$changed" +%F)" - "$file"
}

# pod2html knows no pages but those on this machine.
html() {
    perl -MPod::Simple::XHTML -e '
        package Page;
        our @ISA = "Pod::Simple::XHTML";
        my ($title, $version, $plugin) = @ARGV;
        sub resolve_man_page_link {
            my ($self, $to, $section) = @_;
            my ($page, $number) = $to =~ /^(.+)\((\w+)\)$/ or return undef;
            my $at = defined $section ? "#" . $self->encode_entities($self->idify($section, 1)) : "";
            return "$page.html$at" if $page =~ /^(nbdkit-nbdctl|\Q$plugin\E(-examples)?)$/;
            return "https://libguestfs.org/$page.$number.html$at" if $page =~ /^(nbd|libnbd)/;
            return "https://manpages.debian.org/$page.$number$at";
        }
        my $page = Page->new;
        $page->force_title($title);
        $page->html_header_tags("<meta charset=\"UTF-8\">\n<meta name=\"generator\" content=\"$title $version\">\n"
            . "<style>body{max-width:50em;margin:auto;padding:1em}pre{overflow:auto}</style>");
        $page->index(1);
        $page->output_fh(*STDOUT);
        binmode STDIN;
        binmode STDOUT, ":utf8";
        $page->parse_file(*STDIN);
    ' "$title" "$version" "nbdkit-$name-plugin" >"$file"
}

case $file in
*.html) renamed | html ;;
*) renamed | troff ;;
esac
