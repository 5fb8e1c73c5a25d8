#!/usr/bin/env bash
# Install Debian packages that some tests need; as root.
#   tools/apt_install.sh PACKAGE...
set -euo pipefail
# What packages of daemons start at once is not wanted.
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
apt-get -o DPkg::Lock::Timeout=600 update -q >/dev/null
apt-get -o DPkg::Lock::Timeout=600 install -qq -y --no-install-recommends "$@" >/dev/null
