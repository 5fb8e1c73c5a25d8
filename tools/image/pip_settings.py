"""What pip on this machine is told, for a build in a container.

`pip_settings.py FILE` writes a pip.conf and prints the options of `buildah build` that mount what it names: folders and
certificates of this machine, each below /dev, where a container has a file system of its own that no image keeps.
"""

import ast
import subprocess
import sys
from pathlib import Path

PLACES = ("extra-index-url", "find-links")
NAMES = (*PLACES, "index-url", "trusted-host", "proxy", "cert", "timeout")


def settings() -> dict[str, list[str]]:
    """Every value of the settings that say where packages come from, the environment's before the files'."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    for line in sorted(listed.splitlines()):
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        # Places are added to one another; of anything else there is one value.
        if name in PLACES or (name in NAMES and name not in found):
            found[name] = found.get(name, []) + ast.literal_eval(value).split()
    return found


def main(path: str) -> None:
    inside: dict[Path, str] = {}
    lines = ["[global]"]
    for name, values in settings().items():
        for index, value in enumerate(values):
            place = Path(value.removeprefix("file://"))
            if place.is_absolute() and place.exists():
                # An index refers to the files beside it.
                root = place.parent if name.endswith("index-url") else place
                mounted = inside.setdefault(root, f"/dev/pip-{len(inside)}")
                values[index] = value.replace(str(root), mounted)
        lines.append(f"{name} = {' '.join(dict.fromkeys(values))}")
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for root, mounted in inside.items():
        print(f"--volume={root.resolve()}:{mounted}:ro")


if __name__ == "__main__":
    main(sys.argv[1])
