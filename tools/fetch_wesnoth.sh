#!/bin/sh
# Put the translations of Battle for Wesnoth's 16 campaigns (GPL-2+) into DIR (default data/wesnoth), a folder a
# language with a .mo file a campaign: from the Debian packages wesnoth-1.16-* (132 MB to download, 68 MB kept).
# Needs apt-get and dpkg-deb, no root where the package lists are fresh.
set -eu

dir=${1:-data/wesnoth}
campaigns="did dm dw ei httt l low nr sof sota sotbe thot trow tsg ttb utbs"
fail() { echo "fetch_wesnoth: $*" >&2; exit 1; }
is_there() { [ -e "$dir/.$1" ]; } # an empty file marks each campaign that is complete
have_all() {
    for campaign in $campaigns; do
        is_there "$campaign" || return 1
    done
}

if have_all; then
    echo "Wesnoth's translations are already in $dir"
    exit 0
fi
instead="put the .mo files of the game's 16 campaigns (version 1.16, from https://www.wesnoth.org) \
into $dir/LANGUAGE yourself, de for German"
. "${0%/*}/debian_package.sh"

mkdir -p "$dir" || fail "cannot create $dir"
for campaign in $campaigns; do
    if is_there "$campaign"; then
        continue
    fi
    unpack "wesnoth-1.16-$campaign"
    find "$work/unpacked" -path "*/LC_MESSAGES/*.mo" >"$work/files"
    [ -s "$work/files" ] || fail "the package wesnoth-1.16-$campaign holds no translations"
    while read -r file; do
        language=${file%/LC_MESSAGES/*}
        language=${language##*/}
        mkdir -p "$dir/$language"
        keep "$file" "$dir/$language/${file##*/}"
    done <"$work/files"
    rm -rf "$work/unpacked"
    touch "$dir/.$campaign"
done
echo "Wesnoth's translations are in $dir"
