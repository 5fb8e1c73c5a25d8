"""`megaqk ARGUMENTS` in a container, which runs as PID 1's only child, on whatever machine.

What it writes lands below /data: `runs` and `cache` of the working directory lead there. `pretrain` starts as many
processes as the machine has GPUs, or else as the configuration needs at least, unless a launcher or --processes says.
"""

import os
import sys
from pathlib import Path

from megaqk.config.loading import load_config
from megaqk.errors import REFUSED, UserError
from megaqk.runtime.launch import read_launch

DATA = Path("/data")


def processes(words: list[str]) -> list[str]:
    """The option that is missing in the words after `pretrain`."""
    try:
        if any(word.startswith("--") for word in words) or read_launch().launcher != "none":
            return []
        if any(Path("/dev").glob("nvidia[0-9]*")):
            return ["--processes", "auto"]
        parallel = load_config(words[0], words[1:]).parallel
    except (UserError, IndexError):
        return []  # the command itself says what is wrong
    least = parallel.tensor * parallel.pipeline
    return ["--processes", str(least)] if least > 1 else []


def main(words: list[str]) -> None:
    """Become the command."""
    pretrain = words[:1] == ["pretrain"]
    try:
        for name in ("runs", "cache"):
            (DATA / name).mkdir(exist_ok=True)
    except OSError as error:
        if pretrain:
            line = f"{DATA}: {error.strerror} for user {os.getuid()}: must be a folder or volume that it may write to"
            print(f"megaqk: error: {line}", file=sys.stderr)
            sys.exit(REFUSED)
    os.execvp("megaqk", ["megaqk", *words, *(processes(words[1:]) if pretrain else [])])


main(sys.argv[1:])
