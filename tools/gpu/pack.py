"""Packs what megaqk and its GPU tests need beside torch, as wheels for a Linux machine with Python 3.12 and no network.

Run it in the environment of `make setup`, whose versions it takes: `.venv/bin/python tools/gpu/pack.py`. The folder
`gpu-wheels` travels with the tree; `tools/gpu/install.sh` installs from it there.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOTS = ["megaqk", "pytest", "pytest-timeout"]
LEFT_OUT = {
    "torch": "is there, with what it needs",
    "setuptools": "comes with torch",
    "datasets": "reads formats that a prepared corpus needs no more",
    "grpcio": "serves TensorBoard, which only writes here",
    "tensorboard-data-server": "likewise",
    "huggingface-hub": "downloads, of which there are none",
}
SOURCE_ONLY = {"deepspeed"}
PYTHON = "3.12"
MARKERS = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "extra": ""}
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17, 12, 5)]
LIMIT = 60_000_000
"""Bytes of the whole folder."""


def needed(name: str, seen: set[str]) -> Iterator[str]:
    """`name==version` of a distribution and of all that it requires on the other machine, as installed here."""
    name = canonicalize_name(name)
    if name in LEFT_OUT or name in seen:
        return
    seen.add(name)
    found = distribution(name)
    if name != "megaqk":
        yield f"{name}=={found.version}"
    for text in found.requires or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(MARKERS):
            yield from needed(requirement.name, seen)


def fetch(requirements: Sequence[str], folder: Path) -> None:
    """Put the wheels of requirements into a folder; what exists as source only is built, and must not be compiled."""
    pip = [sys.executable, "-m", "pip", "--quiet"]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", PYTHON, *platforms, "--dest", str(folder)]
    sources = [requirement for requirement in requirements if requirement.partition("==")[0] in SOURCE_ONLY]
    subprocess.run([*pip, "download", *options, *(set(requirements) - set(sources))], check=True)
    with tempfile.TemporaryDirectory() as built:
        subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", built, *sources], check=True)
        for path in Path(built).iterdir():
            if not path.name.endswith("-none-any.whl"):
                sys.exit(f"{path.name}: fits this machine only")
            shutil.move(path, folder)


def compress(path: Path) -> None:
    """Pack a wheel anew with LZMA, which takes a fifth off; pip reads that too."""
    smaller = path.with_suffix(".smaller")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(smaller, "w", zipfile.ZIP_LZMA) as new:
        for entry in old.infolist():
            new.writestr(entry, old.read(entry), zipfile.ZIP_LZMA)
    smaller.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu-wheels"))
    folder: Path = parser.parse_args().output
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.whl"):
        path.unlink()
    seen: set[str] = set()
    fetch([entry for root in ROOTS for entry in needed(root, seen)], folder)
    for path in folder.glob("*.whl"):
        compress(path)
    size = sum(path.stat().st_size for path in folder.glob("*.whl"))
    print(f"{folder}: {len(list(folder.glob('*.whl')))} wheels, {size / 1e6:.1f} MB")
    if size > LIMIT:
        sys.exit(f"{folder} has {size / 1e6:.1f} MB: must be below {LIMIT / 1e6:.0f} MB; leave more out")


if __name__ == "__main__":
    main()
