"""Small corpora, written to disk at once or by a command that takes its time."""

import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from megaqk.corpus.writer import IndexPart, write_index
from megaqk.data.indexed import data_path, index_path


def write_corpus(prefix: Path, dtype: np.dtype[Any], documents: list[Any]) -> None:
    """Write documents, one sequence each."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    data_path(prefix).write_bytes(b"".join(np.asarray(document).astype(dtype).tobytes() for document in documents))
    lengths = np.array([len(document) for document in documents], dtype=np.int32)
    write_index(index_path(prefix), dtype, [IndexPart(lengths, range(len(lengths) + 1))])


# Goes before a command that prepares a corpus: small chunks, which come slowly, and a journal that only a stop writes.
SLOWLY = """
import time
from megaqk.corpus import build, sources
sources.CHUNK_BYTES, build.JOURNAL_EVERY_SECONDS = 300, 1e9
real = build.encode_in_order
def encode_in_order(*arguments, **keys):
    for item in real(*arguments, **keys):
        time.sleep(0.05)
        yield item
build.encode_in_order = encode_in_order
"""


def wait_for_documents(process: subprocess.Popen[str], prefix: Path) -> None:
    """Wait until a command has written the first documents."""
    lengths, deadline = prefix.with_name(prefix.name + ".len.partial"), time.monotonic() + 60
    while not (lengths.exists() and lengths.stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
