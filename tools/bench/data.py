"""Speed of the data path: tokenising against its limits, and sample order, opening and reading at 10^9.

Tokenising is timed in processes of their own, bound to one core or two, in alternating rounds; the best round of each
counts, as on a shared machine the rest is other people's work; processor time, which others disturb less, stands beside
it. The limit is sentencepiece's own batch encoder on texts
that are in memory already, writing nothing; ours and `datasets.map` read the file, and ours also writes the corpus,
its index and its checksums.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from megaqk.config.data import DataConfig
from megaqk.corpus.build import build_corpus
from megaqk.corpus.encoding import Recipe
from megaqk.corpus.prepare import builtin_file
from megaqk.corpus.shards import iterate_texts
from megaqk.corpus.sources import find_sources
from megaqk.corpus.tokenizer_training import train_sentencepiece
from megaqk.corpus.writer import IndexPart, write_index
from megaqk.data.blend import BlendedDataset, Phase
from megaqk.data.dataset import Dataset
from megaqk.data.existing import PreparedData
from megaqk.data.indexed import index_path
from megaqk.data.permutation import Permutation
from megaqk.data.splits import Splits, open_splits
from megaqk.runtime.agreement import Solo
from megaqk.runtime.files import written_whole

BILLION = 10**9


def cpu_seconds() -> float:
    """Processor time of this process and its ended children so far."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds and processor seconds of `work`."""
    before = cpu_seconds()
    taken = seconds(work)
    return taken, cpu_seconds() - before


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def megaqk_case(text: Path, model: Path, cores: int) -> tuple[float, float]:
    sources = find_sources([str(text)], key="text")
    with tempfile.TemporaryDirectory(dir=text.parent) as directory:
        recipe = Recipe(model, "text", skip_bad=False)
        return timed(lambda: build_corpus(sources, Path(directory) / "c", recipe, comm=Solo(), workers=cores))


def sentencepiece_case(text: Path, model: Path, cores: int) -> tuple[float, float]:
    import sentencepiece

    texts = list(iterate_texts(find_sources([str(text)], key="text")))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return timed(lambda: processor.encode(texts, out_type="numpy", num_threads=cores))


def datasets_case(text: Path, model: Path, cores: int) -> tuple[float, float]:
    import datasets
    import sentencepiece

    datasets.disable_progress_bars()
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        return {"ids": processor.encode(batch["text"])}

    with tempfile.TemporaryDirectory(dir=text.parent) as directory:

        def work() -> None:
            table = datasets.load_dataset("json", data_files=str(text), split="train", cache_dir=directory)
            table.map(encode, batched=True, num_proc=cores, remove_columns=table.column_names)

        return timed(work)


CASES = {"sentencepiece": sentencepiece_case, "megaqk": megaqk_case, "datasets.map": datasets_case}


def _in_process(case: str, text: Path, model: Path, cores: int, send: Any) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    send.send(CASES[case](text, model, cores))


def isolated(case: str, text: Path, model: Path, cores: int) -> tuple[float, float]:
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_in_process, args=(case, text, model, cores, send))
    process.start()
    send.close()
    taken: tuple[float, float] = receive.recv()
    process.join()
    return taken


def tokenising(text: Path, megabytes: float, vocab_size: int, rounds: int, directory: Path) -> None:
    sample, size = directory / "sample.jsonl", 0
    with sample.open("w", encoding="utf-8") as stream:
        for one in iterate_texts(find_sources([str(text)], key="text"), max_bytes=int(megabytes * 1e6)):
            stream.write(json.dumps({"text": one}) + "\n")
            size += len(one.encode())
    model = directory / "t.model"
    texts = iterate_texts(find_sources([str(sample)], key="text"), max_bytes=20_000_000)
    with written_whole(model) as path:
        path.write_bytes(train_sentencepiece(texts, vocab_size=vocab_size))
    print(f"tokenising {size / 1e6:.1f} MB, {vocab_size} ids, best of {rounds} rounds")
    best: dict[tuple[str, int], tuple[float, float]] = {}
    core_counts = [count for count in (1, 2) if count <= len(os.sched_getaffinity(0))]
    for _ in range(rounds):
        for cores in core_counts:
            for case in CASES:
                taken = isolated(case, sample, model, cores)
                before = best.get((case, cores), taken)
                best[case, cores] = (min(before[0], taken[0]), min(before[1], taken[1]))
    for cores in core_counts:
        for case in CASES:
            (taken, used), (limit, least) = best[case, cores], best["sentencepiece", cores]
            print(
                f"  {cores} core(s)  {case:14} {size / 1e6 / taken:7.2f} MB/s  {limit / taken:5.2f} of sentencepiece's "
                f"batch encoder, {least / used:5.2f} by processor time"
            )


def anonymous_memory() -> int:
    """Bytes this process holds of its own; mapped files, which the kernel can drop at will, are not counted."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def sample_order() -> None:
    before = anonymous_memory()
    made: list[Permutation] = []
    taken = seconds(lambda: made.append(Permutation(BILLION, "bench")))
    positions = np.random.default_rng(0).integers(0, BILLION, 1_000_000)
    use = seconds(lambda: made[0](positions))
    held = anonymous_memory() - before - positions.nbytes
    print(
        f"order of 10^9 samples: built in {taken * 1e3:.3f} ms; {1e6 / use / 1e6:.1f}M positions/s; {held / 1e6:.1f} MB"
    )


def sparse_corpus(directory: Path, tokens: int, document: int) -> PreparedData:
    """Make a corpus of zeros, whose data takes no room on disk."""
    prefix = directory / f"c{tokens}"
    with prefix.with_suffix(".bin").open("wb") as stream:
        stream.truncate(2 * tokens)
    lengths = np.full(tokens // document, document, dtype=np.int32)
    write_index(index_path(prefix), np.dtype("<u2"), [IndexPart(lengths, range(len(lengths) + 1))])
    return PreparedData(None, (prefix,), 50_000, 0)


def read_rate(stream: Dataset, batch: int = 16, batches: int = 500) -> float:
    """Tokens/s of reading one batch after the other, whose samples lie all over the corpus; best of several passes.

    The first pass measures the disk (here: the kernel making pages), the others what a run sees whose pages are there.
    """
    positions = np.arange(batches * batch).reshape(batches, batch)

    def work() -> None:
        for one in positions:
            stream.read(one)

    return batches * batch * stream.sequence_length / min(seconds(work) for _ in range(7))


def opening_and_reading(directory: Path, sequence_length: int, model_rate: float) -> None:
    streams = [one_size(directory, tokens, sequence_length, model_rate) for tokens in (10**7, 10**8, BILLION)]
    phases = [Phase(0, (0.7, 0.2, 0.1)), Phase(10**6, (123457.0, 98765.0, 3.0))]
    taken = seconds(lambda: BlendedDataset(streams, phases))
    rate = read_rate(BlendedDataset(streams, phases))
    built, read = f"built in {taken * 1e3:.1f} ms", f"read at {rate / 1e6:.0f}M tokens/s"
    print(f"blend of the three: {built}, {read} ({rate / model_rate:,.0f}x)")


def one_size(directory: Path, tokens: int, sequence_length: int, model_rate: float) -> Dataset:
    config, prepared = DataConfig(corpus="unused"), sparse_corpus(directory, tokens, 1000)
    before = anonymous_memory()

    def work() -> Splits:
        return open_splits(prepared, config, sequence_length=sequence_length, seed=0)

    taken = min(seconds(work) for _ in range(5))
    train = work().train
    rate = read_rate(train)
    held = max(anonymous_memory() - before, 0)
    print(
        f"corpus of {tokens:.0e} tokens: opened in {taken * 1e3:.1f} ms, read at {rate / 1e6:.0f}M tokens/s "
        f"({rate / model_rate:,.0f}x the model's {model_rate:,.0f}), {held / 1e6:.1f} MB held"
    )
    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="?", type=Path, default=builtin_file(), help="default: the shipped text")
    parser.add_argument("--megabytes", type=float, default=40.0, help="of text to tokenise, at most")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sequence-length", type=int, default=128, help="the quickstart's")
    parser.add_argument("--model-rate", type=float, default=10_000.0, help="tokens/s that the quickstart trains on")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        sample_order()
        opening_and_reading(Path(name), arguments.sequence_length, arguments.model_rate)
        tokenising(arguments.text, arguments.megabytes, arguments.vocab_size, arguments.rounds, Path(name))


if __name__ == "__main__":
    main()
