#!/bin/sh
# Installs what tools/cluster/cluster.sh and tests/cluster need on Debian or Ubuntu, as root, where it is missing.
set -eu
PATH=$PATH:/usr/sbin:/sbin
missing=
for needed in slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge ip:iproute2 shellcheck:shellcheck; do
    command -v "${needed%:*}" >/dev/null || missing="$missing ${needed#*:}"
done
[ -z "$missing" ] && exit 0
[ "$(id -u)" = 0 ] || { echo "the tests of Slurm need root; to install as root:$missing" >&2; exit 2; }
# shellcheck disable=SC2086
exec "$(dirname "$0")/../apt_install.sh" $missing
