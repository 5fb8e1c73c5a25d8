"""Training, validation and test: contiguous runs of whole documents."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megaqk.config.data import DataConfig
from megaqk.data.blend import BlendStream, Stage, resolve_stages
from megaqk.data.dataset import PackedStream, SampleStream, samples_in
from megaqk.data.existing import PreparedData
from megaqk.data.indexed import IndexedCorpus
from megaqk.data.manifest import is_described
from megaqk.data.pattern import whole_weights
from megaqk.errors import UserError

NAMES = ("train", "valid", "test")


@dataclass(frozen=True)
class Splits:
    """The three parts of the data; None is a part that data.split gives nothing, or a test part without a sample.

    Attributes:
        train: Shuffled, differently in each epoch.
        valid: In file order: positions [0, num_samples) are the whole part.
        test: In file order.
    """

    train: SampleStream
    valid: SampleStream | None
    test: SampleStream | None


def document_bounds(num_documents: int, split: Sequence[float]) -> list[int]:
    """Return the len(split) + 1 document numbers between which the parts lie, rounded to the nearest."""
    bounds, total = [0], 0.0
    for fraction in split:
        total += fraction
        bounds.append(min(round(total * num_documents), num_documents))
    bounds[-1] = num_documents
    return bounds


def open_splits(
    prepared: PreparedData,
    config: DataConfig,
    *,
    sequence_length: int,
    seed: int,
    global_batch_size: int | None = None,
) -> Splits:
    """Open the samples of prepared corpora; they are memory-mapped, so this costs no memory of their size.

    Args:
        prepared: What `prepare` returned.
        config: The `data` section.
        sequence_length: Tokens a sample trains on.
        seed: Seed of the training order; data.seed takes its place where given.
        global_batch_size: Samples of a step, which stages that start at a step are counted in.

    Returns:
        The three parts. Of a blend, validation and test have the proportions of the start of the run and are as long
        as no source repeats; sources without such a part are left out.

    Raises:
        UserError: A corpus is malformed, or training or validation is asked for and too small for one sample.
    """
    order_seed = seed if config.seed is None else config.seed
    if config.sources is None:
        parts = _open_parts(
            prepared.corpora[0],
            config.split,
            key="data.split",
            sequence_length=sequence_length,
            shuffle_key=("train", order_seed),
            vocab_size=prepared.vocab_size,
        )
        train = parts[0]
        if train is None:
            raise UserError(f"data.split = {list(config.split)}: the first fraction, for training, must be above 0")
        return Splits(train, parts[1], parts[2])
    by_source = [
        _open_parts(
            prefix,
            source.split or config.split,
            key=f"data.split (of source {source.label})",
            sequence_length=sequence_length,
            # By name: adding or removing a source leaves the order inside the others as it was.
            shuffle_key=("train", order_seed, source.label),
            vocab_size=prepared.vocab_size,
        )
        for prefix, source in zip(prepared.corpora, config.sources, strict=True)
    ]
    stages = resolve_stages(config.sources, config.stages, sequence_length, global_batch_size)
    for number, source in enumerate(config.sources):
        if by_source[number][0] is None and any(stage.weights[number] for stage in stages):
            raise UserError(f"data.sources: {source.label} has a weight, but its split leaves nothing for training")
    train_streams = [(parts[0], number) for number, parts in enumerate(by_source)]
    kept = [(stream, number) for stream, number in train_streams if stream is not None]
    train_stages = [Stage(one.start, tuple(one.weights[number] for _, number in kept)) for one in stages]
    return Splits(
        BlendStream([stream for stream, _ in kept], train_stages),
        _held_out([parts[1] for parts in by_source], stages[0].weights),
        _held_out([parts[2] for parts in by_source], stages[0].weights),
    )


def _open_parts(
    prefix: Path,
    split: Sequence[float],
    *,
    key: str,
    sequence_length: int,
    shuffle_key: tuple[int | str, ...],
    vocab_size: int,
) -> list[PackedStream | None]:
    corpus = IndexedCorpus(prefix, trusted=is_described(prefix))
    bounds = document_bounds(corpus.num_documents, split)
    parts: list[PackedStream | None] = []
    for name, fraction, first, last in zip(NAMES, split, bounds[:-1], bounds[1:], strict=True):
        begin, end = corpus.start_of(first), corpus.start_of(last)
        enough = samples_in(end - begin, sequence_length) > 0
        # No run reads the test part: a corpus of a few documents must not fail for want of one.
        if fraction == 0 or (name == "test" and not enough):
            parts.append(None)
            continue
        if not enough:
            raise UserError(
                f"{key} = {list(split)}: {name} gets {last - first} of {corpus.num_documents} documents with "
                f"{end - begin} tokens, a sample takes training.sequence_length + 1 = {sequence_length + 1}; "
                f"{_remedy(corpus, sequence_length)}"
            )
        parts.append(
            PackedStream(
                corpus,
                begin,
                end,
                sequence_length=sequence_length,
                shuffle_key=shuffle_key if name == "train" else None,
                vocab_size=vocab_size,
            )
        )
    return parts


def _remedy(corpus: IndexedCorpus, sequence_length: int) -> str:
    found = []
    for tenths in range(1, 10):
        middle = corpus.start_of(document_bounds(corpus.num_documents, (1 - tenths / 10, tenths / 10))[1])
        if samples_in(middle, sequence_length) and samples_in(corpus.num_tokens - middle, sequence_length):
            found.append(f"give validation more (data.split=[{(10 - tenths) / 10},{tenths / 10},0])")
            break
    if samples_in(corpus.num_tokens, sequence_length):
        found.append("train without validation (data.split=[1,0,0])")
    found.append("shorten training.sequence_length")
    found.append("or prepare .txt files with --text-unit paragraph or line, which makes more documents of each")
    return ", ".join(found)


def _held_out(streams: Sequence[PackedStream | None], weights: Sequence[float]) -> SampleStream | None:
    kept = [(stream, weight) for stream, weight in zip(streams, weights, strict=True) if stream is not None and weight]
    if not kept:
        return None
    # In integers: a quotient of extreme weights is no float.
    whole = whole_weights([weight for _, weight in kept])
    num_samples = min(
        stream.num_samples * sum(whole) // weight for (stream, _), weight in zip(kept, whole, strict=True)
    )
    stage = Stage(0, tuple(weight for _, weight in kept))
    return BlendStream([stream for stream, _ in kept], [stage], num_samples=max(num_samples, 1))
