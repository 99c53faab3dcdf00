#!/bin/sh
# Put Fashion-MNIST's four idx files into DIR (default data/fashion_mnist), from the Debian package dataset-fashion-mnist (MIT).
# Needs apt-get and dpkg-deb, no root where the package lists are fresh.
set -eu

dir=${1:-data/fashion_mnist}
package=dataset-fashion-mnist
files="train-images-idx3-ubyte train-labels-idx1-ubyte t10k-images-idx3-ubyte t10k-labels-idx1-ubyte"
fail() { echo "fetch_fashion_mnist: $*" >&2; exit 1; }

have_all() {
    for file in $files; do
        [ -s "$1/$file" ] || [ -s "$1/$file.gz" ] || return 1
    done
}

if have_all "$dir"; then
    echo "Fashion-MNIST is already in $dir"
    exit 0
fi
instead="put the four idx files of https://github.com/zalandoresearch/fashion-mnist \
($files, .gz or not) into $dir yourself"
. "${0%/*}/debian_package.sh"

mkdir -p "$dir" || fail "cannot create $dir"
unpack "$package"
for file in $files; do
    found=$(find "$work/unpacked" -name "$file*" \( -type f -o -type l \) | head -n 1)
    [ -n "$found" ] || fail "the package $package holds no $file"
    keep "$found" "$dir/$(basename "$found")"
done
have_all "$dir" || fail "some of $files are missing in $dir"
echo "Fashion-MNIST is in $dir"
