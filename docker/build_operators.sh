#!/usr/bin/env bash
# Compile into /opt/venv what a rank would otherwise compile at its start; a step of the Dockerfile.
#   build_operators.sh deepspeed
#   build_operators.sh apex COMMIT
set -euo pipefail
pip=/opt/venv/bin/pip
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

case $1 in
deepspeed)
    "$pip" download -q -c constraints.txt --no-deps --no-binary deepspeed --no-build-isolation -d "$work" deepspeed
    tar -xzf "$work"/deepspeed-*.tar.gz -C "$work" --strip-components=1
    # It compiles for the processor that it runs on, which may have more than those of the cluster.
    builder=$work/op_builder/builder.py
    sed -i "s/-march=native/-march=$CPU_ARCH/; s/^    def simd_width(self):/&\n        return '-D__AVX256__'/" "$builder"
    grep -q "march=$CPU_ARCH" "$builder" && grep -q "return '-D__AVX256__'$" "$builder"
    DS_ACCELERATOR=${DS_ACCELERATOR:-cuda} DS_BUILD_FUSED_ADAM=${FUSED_ADAM:-1} DS_BUILD_CPU_ADAM=1 \
        "$pip" install -c constraints.txt --no-deps --no-build-isolation --force-reinstall "$work"
    /opt/venv/bin/python -c "
from deepspeed.git_version_info import installed_ops
missing = {'fused_adam', 'cpu_adam'} - {name for name, there in installed_ops.items() if there}
assert not missing, f'not compiled: {missing}'"
    ;;
apex)
    git -C "$work" init -q
    git -C "$work" fetch -q --depth 1 https://github.com/NVIDIA/apex.git "$2"
    git -C "$work" checkout -q FETCH_HEAD
    APEX_CPP_EXT=1 APEX_CUDA_EXT=1 APEX_PARALLEL_BUILD=$MAX_JOBS \
        "$pip" install --no-deps --no-build-isolation "$work"
    /opt/venv/bin/python -c "import torch, amp_C, apex_C; from apex.optimizers import FusedAdam"
    ;;
*)
    echo "$1: must be deepspeed or apex" >&2
    exit 2
    ;;
esac
