#!/bin/sh
# `megaqk ARGUMENTS`. What it writes lands below /data: runs/ and cache/ of the working directory lead there.
set -eu
if ! mkdir -p /data/runs /data/cache 2>/dev/null && [ "${1:-}" = pretrain ]; then
    echo "megaqk: error: /data: user $(id -u) cannot write there: mount a folder or a volume that it may write to" >&2
    exit 2
fi
exec megaqk "$@"
