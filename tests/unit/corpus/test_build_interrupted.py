"""Building that is stopped, killed or damaged on the way, and what the next run makes of it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megaqk.corpus import build
from megaqk.corpus.assembling import merge
from megaqk.corpus.encoding import Recipe
from megaqk.data.indexed import IndexedCorpus
from megaqk.errors import AGAIN, UserError
from tests.corpora import SLOWLY, wait_for_documents
from tests.unit.corpus.building import FILES, contents, make, on_threads

pytestmark = pytest.mark.usefixtures("small_chunks")


def failing_after(chunks: int, error: BaseException) -> Callable[..., Any]:
    real = build.encode_in_order

    def encode(*args: Any, **keys: Any) -> Any:
        for number, item in enumerate(real(*args, **keys)):
            if number == chunks:
                raise error
            yield item

    return encode


def make_whole_and_interrupted(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, recipe, "whole")
    with monkeypatch.context() as patched:
        patched.setattr(build, "encode_in_order", failing_after(7, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, recipe)


@pytest.mark.parametrize("ranks_after", [1, 2])
def test_interrupted_work_goes_on_where_it_was(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, ranks_after: int
) -> None:
    make_whole_and_interrupted(tmp_path, recipe, monkeypatch)
    assert not (tmp_path / "out.bin").exists()
    step = json.loads((tmp_path / "out.journal.json").read_text())["step"]
    assert step > 0
    # What was written after the last journal entry is cut off, not trusted.
    with (tmp_path / "out.bin.partial").open("ab") as stream:
        stream.write(b"half a tok")
    begun: list[int] = []
    real = build.Shards.chunks
    monkeypatch.setattr(build.Shards, "chunks", lambda self, first: begun.append(first) or real(self, first))
    on_threads(ranks_after, lambda comm: make(tmp_path, recipe, comm=comm))
    assert begun == [step] * ranks_after
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.bin", "out.idx", "out.manifest.json"]


def test_changed_inputs_start_afresh(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(build, "encode_in_order", failing_after(7, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, recipe)
    with (tmp_path / "a.jsonl").open("a") as stream:
        stream.write('{"text": "one more"}\n')
    make(tmp_path, recipe)
    make(tmp_path, recipe, "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    with pytest.raises(UserError, match=r"out.bin: exists and was made from other inputs"):
        make(tmp_path, recipe, "out", "a")
    make(tmp_path, recipe, "out", "a", overwrite=True)
    assert IndexedCorpus(tmp_path / "out").num_documents == 41


KILLED = """
import sys
from pathlib import Path
from megaqk.corpus import build, sources
from megaqk.runtime.agreement import Solo
from megaqk.corpus.encoding import Recipe
from megaqk.runtime.locks import exclusive_lock
sources.CHUNK_BYTES, build.JOURNAL_EVERY_SECONDS = 300, 0.0
model, out, *inputs = sys.argv[1:]
recipe = Recipe(Path(model), "text", False)
build.build_corpus(sources.find_sources(inputs, key="input"), Path(out), recipe, comm=Solo(), workers=2)
"""


def test_a_kill_at_any_moment_leaves_what_a_rerun_finishes(tmp_path: Path, recipe: Recipe) -> None:
    inputs = [str(tmp_path / f"{name}.jsonl") for name in FILES]
    make(tmp_path, recipe, "whole")
    command = [sys.executable, "-c", KILLED, str(recipe.tokenizer), str(tmp_path / "out"), *inputs]
    for wait in (0.0, 0.05):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (tmp_path / "out.journal.json").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "out.bin").exists():
            break
    subprocess.run(command, check=True, timeout=120, stderr=subprocess.DEVNULL)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


SLOW_COMMAND = f"{SLOWLY}import sys\nfrom megaqk.cli import main\nsys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize(
    ("number", "group", "workers"),
    [(signal.SIGINT, True, 2), (signal.SIGTERM, True, 2), (signal.SIGTERM, False, 2), (signal.SIGINT, False, 1)],
)
def test_a_signal_stops_cleanly_and_the_same_command_continues(
    tmp_path: Path, recipe: Recipe, number: signal.Signals, group: bool, workers: int
) -> None:
    make(tmp_path, recipe, "whole")
    inputs = [str(tmp_path / f"{name}.jsonl") for name in FILES]
    command = [sys.executable, "-c", SLOW_COMMAND, "data", "prepare", *inputs, "--tokenizer", str(recipe.tokenizer)]
    command += ["--output", str(tmp_path / "out"), "--workers", str(workers)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # The tests may run in the background of a shell, which has it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        wait_for_documents(process, tmp_path / "out")
        # A terminal and a batch system signal the workers too.
        (os.killpg if group else os.kill)(process.pid, number)
        begun = time.monotonic()
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert time.monotonic() - begun < 20
    assert errors == f"{tmp_path / 'out'}: stopped; the same command continues\n"
    assert process.returncode == AGAIN
    assert json.loads((tmp_path / "out.journal.json").read_text())["documents"] > 0
    subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the package handles it."""


def kills_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Die at the given change of the directory's entries under a corpus' final names, and all later ones."""
    calls: list[Path] = []

    def dying(name: str) -> None:
        real = getattr(Path, name)

        def change(self: Path, *args: Any, **keys: Any) -> Any:
            target = Path(args[0]) if name == "replace" else self
            if target.name in {"out.bin", "out.idx", "out.manifest.json"}:
                calls.append(target)
                if len(calls) >= call:
                    raise Killed
            return real(self, *args, **keys)

        monkeypatch.setattr(Path, name, change)

    dying("replace")
    dying("unlink")


@pytest.mark.parametrize("call", [1, 2, 3, 4, 5, 6])
def test_a_killed_overwrite_is_finished_by_a_rerun(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    # The old and the new corpus have as many tokens and documents: sizes do not tell them apart.
    (tmp_path / "b.jsonl").write_text((tmp_path / "a.jsonl").read_text().replace("a says", "b says"))
    make(tmp_path, recipe, "whole", "b")
    old = make(tmp_path, recipe, "out", "a")
    with monkeypatch.context() as patched:
        kills_at(patched, call)
        try:
            new = make(tmp_path, recipe, "out", "b", overwrite=True)
        except Killed:
            new = None
    assert (new is None) == (call < 6)
    found = make(tmp_path, recipe, "out", "b", overwrite=True)
    assert found.data.size == old.data.size
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.bin", "out.idx", "out.manifest.json"]


@pytest.mark.parametrize("call", [1, 2, 3, 4, 5])
def test_a_killed_merge_never_leaves_an_old_manifest_beside_new_data(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    (tmp_path / "b.jsonl").write_text((tmp_path / "a.jsonl").read_text().replace("a says", "b says"))
    make(tmp_path, recipe, "other", "b")
    make(tmp_path, recipe, "out", "a")
    before = contents(tmp_path / "out")
    with monkeypatch.context() as patched:
        kills_at(patched, call)
        with pytest.raises(Killed):
            merge(tmp_path / "out", [IndexedCorpus(tmp_path / "other")], overwrite=True)
    if (tmp_path / "out.bin").exists():
        assert contents(tmp_path / "out") == before
    merge(tmp_path / "out", [IndexedCorpus(tmp_path / "other")], overwrite=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def test_a_merge_without_manifests_removes_the_old_one(tmp_path: Path, recipe: Recipe) -> None:
    make(tmp_path, recipe, "other", "b")
    (tmp_path / "other.manifest.json").unlink()
    make(tmp_path, recipe, "out", "a")
    assert merge(tmp_path / "out", [IndexedCorpus(tmp_path / "other")], overwrite=True) is None
    assert not (tmp_path / "out.manifest.json").exists()


def test_partial_data_means_unfinished(tmp_path: Path, recipe: Recipe) -> None:
    make(tmp_path, recipe, "out", "a")
    (tmp_path / "out.bin.partial").write_bytes(b"what an older version left")
    with pytest.raises(UserError, match=r"out.bin: exists and is unfinished"):
        make(tmp_path, recipe, "out", "a")
    make(tmp_path, recipe, "out", "a", overwrite=True)
    assert not (tmp_path / "out.bin.partial").exists()


DAMAGED = ['{"step": "x"}', "null", '{"skipped": [1]}', '{"tokens": -1}', '{"documents": true}', "[" * 100_000]


@pytest.mark.parametrize("damage", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_journal_starts_afresh(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    make_whole_and_interrupted(tmp_path, recipe, monkeypatch)
    path = tmp_path / "out.journal.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | json.loads(damage)) if damage[0] == "{" else damage)
    make(tmp_path, recipe)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("finished", [False, True])
def test_stopping_does_not_go_on_with_what_was_skipped(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    lines = (tmp_path / "c.jsonl").read_text().splitlines()
    lines[2] = lines[2][:9]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    skipping = Recipe(recipe.tokenizer, "text", skip_bad=True)
    with monkeypatch.context() as patched:
        if not finished:
            patched.setattr(build, "encode_in_order", failing_after(5, KeyboardInterrupt()))
        with contextlib.suppress(KeyboardInterrupt):
            make(tmp_path, skipping, "out", "c")
    with pytest.raises(UserError, match=r"out.bin.*: was made with --bad-documents skip and lacks 1 documents"):
        make(tmp_path, recipe, "out", "c")
    with pytest.raises(UserError, match=r"c.jsonl, line 3: malformed JSON"):
        make(tmp_path, recipe, "out", "c", overwrite=True)
    assert make(tmp_path, skipping, "out", "c", overwrite=True).documents == 89
