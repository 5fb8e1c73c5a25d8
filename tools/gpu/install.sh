#!/bin/sh
# Makes .venv-gpu beside the tree from the wheels that tools/gpu/pack.py packed: no network, no compiler. The torch of
# the interpreter is taken as it is. PYTHON chooses the interpreter.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || { echo "$python has no torch: name another with PYTHON=..." >&2; exit 2; }
ls gpu-wheels/*.whl >/dev/null 2>&1 || { echo "gpu-wheels is empty: make gpu-wheels, where there is a network" >&2; exit 2; }
rm -rf .venv-gpu
"$python" -m venv --system-site-packages .venv-gpu
# Without their dependencies: what was left out on purpose is not asked for.
.venv-gpu/bin/python -m pip install --quiet --no-index --no-deps --disable-pip-version-check gpu-wheels/*.whl
# The tree itself, in place, and torch, which may live in an environment of its own.
site=$(.venv-gpu/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
{ pwd; "$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])'; } > "$site/megaqk.pth"
.venv-gpu/bin/python -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
touch .venv-gpu/.installed
