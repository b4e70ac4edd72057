#!/usr/bin/env bash
# Make sure that a PostgreSQL server, a Chromium and a Slurm are at hand for the tests. Installs Debian's packages where
# that is allowed (root, or sudo without a password); elsewhere says what is missing: the tests skip it, or fail when
# CI=true.
set -euo pipefail

missing=()
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || missing+=(postgresql)
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || missing+=(chromium)
slurm=(slurmctld slurmd sbatch munged)
for program in "${slurm[@]}"; do
    if ! PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null; then
        missing+=(slurmctld slurmd slurm-client munge)
        break
    fi
done
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo -n); fi
if command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
    echo "installing ${missing[*]}"
    log=$(mktemp)
    if "${as_root[@]}" apt-get update -q >"$log" 2>&1 &&
        DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -q -y --no-install-recommends "${missing[@]}" >>"$log" 2>&1; then
        rm -f "$log"
        exit 0
    fi
    tail -n 20 "$log" >&2
fi
echo "not at hand: ${missing[*]} (install with your package manager)" >&2
[ "${CI:-}" = true ] && exit 1
exit 0
