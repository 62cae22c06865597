#!/bin/sh
# Install the Debian packages whose program is missing: `sh scripts/system_packages.sh chromium prometheus/promtool`.
#
# A word is a package, or package/program where the program has another name. Where we may not install (no root, no
# apt-get) the missing ones are named and the exit status is 1.
set -eu

say() { printf '%s\n' "$*" >&2; }

# One at a time: apt-get does not wait for another.
if command -v flock >/dev/null; then
    exec 9<"$0"
    flock 9
fi
missing=
for word in "$@"; do
    command -v "${word#*/}" >/dev/null || missing="${missing:+$missing }${word%%/*}"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    say "this machine lacks $missing: run 'sudo apt-get install $missing', then this again"
    exit 1
fi
say "install: apt-get install $missing"
# shellcheck disable=SC2086 # words on purpose
{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing; } >&2 || {
    say "apt-get could not install $missing; install it, then this again"
    exit 1
}
