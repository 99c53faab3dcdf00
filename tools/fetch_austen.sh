#!/bin/sh
# Put Jane Austen's six novels into DIR (default data/austen): the data of the Debian package r-cran-janeaustenr
# (1.6 MB; the novels are in the public domain, the package is MIT). Needs apt-get and dpkg-deb, no root where the
# package lists are fresh.
set -eu

dir=${1:-data/austen}
package=r-cran-janeaustenr
files="Rdata.rdx Rdata.rdb"
fail() { echo "fetch_austen: $*" >&2; exit 1; }
have_all() {
    for file in $files; do
        [ -s "$dir/$file" ] || return 1
    done
}

if have_all; then
    echo "Jane Austen's novels are already in $dir"
    exit 0
fi
instead="put $files of the R package janeaustenr \
(https://cran.r-project.org/package=janeaustenr, installed: its folder data) into $dir yourself"
. "${0%/*}/debian_package.sh"

mkdir -p "$dir" || fail "cannot create $dir"
unpack "$package"
for file in $files; do
    found=$(find "$work/unpacked" -path "*/data/$file" -type f | head -n 1)
    [ -n "$found" ] || fail "the package $package holds no $file"
    keep "$found" "$dir/$file"
done
echo "Jane Austen's novels are in $dir"
