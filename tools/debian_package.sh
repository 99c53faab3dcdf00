# Sourced by the fetch scripts: unpack Debian packages without root. Needs apt-get and dpkg-deb.
# The caller defines fail MESSAGE..., which must exit, and $instead: what to do by hand where they are missing.

if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    fail "this machine has no apt-get; $instead"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

download() { (cd "$work" && apt-get download "$1" >log 2>&1); }

# unpack PACKAGE: download it and put its files under $work/unpacked
unpack() {
    if ! download "$1"; then
        # A fresh image has no package lists; refreshing them needs root.
        apt-get update >"$work/update.log" 2>&1 || true
        download "$1" || { cat "$work/log" >&2; fail "apt-get download $1 failed; try 'sudo apt-get update' first"; }
    fi
    dpkg-deb -x "$work/$1"_*.deb "$work/unpacked" || fail "could not unpack $1"
    rm -f "$work/$1"_*.deb
}

# keep FILE TARGET: copy a file so that TARGET is there whole or not at all
keep() {
    cp -L "$1" "$2.part" && mv "$2.part" "$2"
}
