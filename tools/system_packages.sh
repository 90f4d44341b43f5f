#!/bin/sh
# Installs what the tests need beside Python: Chromium with fonts for the pages, iproute2 for network cuts,
# Slurm's daemons, which the tests start for themselves.
# Without root, apt or network it only says what is missing; those tests then say that they were left out.
set -eu

missing=""
command -v "${CHROMIUM:-chromium}" >/dev/null || missing="$missing chromium"
command -v ip >/dev/null || missing="$missing iproute2"
for program in slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge; do
    PATH="$PATH:/usr/sbin" command -v "${program%:*}" >/dev/null || missing="$missing ${program#*:}"
done
fc-list 2>/dev/null | grep -q 'NotoSansCJK' || missing="$missing fonts-noto-cjk"
fc-list 2>/dev/null | grep -q 'NotoColorEmoji' || missing="$missing fonts-noto-color-emoji"
fc-list 2>/dev/null | grep -q 'NotoSansArabic' || missing="$missing fonts-noto-core"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "system packages: missing$missing; tests that need them are left out" >&2
    exit 0
fi
echo "system packages: installing$missing"
# shellcheck disable=SC2086  # a list of words
if ! { apt-get update -qq &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null; }; then
    echo "system packages: apt could not install$missing, see above; tests that need them are left out" >&2
fi
