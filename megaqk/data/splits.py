"""Training, validation and test: contiguous runs of whole documents."""

from collections.abc import Sequence
from dataclasses import dataclass

from megaqk.config.data import DataConfig
from megaqk.data.indexed import IndexedCorpus
from megaqk.data.prepare import PreparedData
from megaqk.data.stream import PackedStream, SampleStream, samples_in
from megaqk.errors import UserError

NAMES = ("train", "valid", "test")


@dataclass(frozen=True)
class Splits:
    """The three parts of the data; a part that data.split gives nothing is None.

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


def open_splits(prepared: PreparedData, config: DataConfig, *, sequence_length: int, seed: int) -> Splits:
    """Open the samples of a prepared corpus; it is memory-mapped, so this costs no memory of its size.

    Args:
        prepared: What `prepare` returned.
        config: The `data` section.
        sequence_length: Tokens a sample trains on.
        seed: Seed of the training order; data.seed takes its place where given.

    Returns:
        The three parts.

    Raises:
        UserError: The corpus is malformed, or a part that data.split asks for is too small for one sample.
    """
    corpus = IndexedCorpus(prepared.corpus)
    order_seed = seed if config.seed is None else config.seed
    bounds = document_bounds(corpus.num_documents, config.split)
    streams: dict[str, SampleStream | None] = {}
    for name, fraction, first, last in zip(NAMES, config.split, bounds[:-1], bounds[1:], strict=True):
        begin, end = corpus.start_of(first), corpus.start_of(last)
        if samples_in(end - begin, sequence_length):
            key = ("train", order_seed) if name == "train" else None
            streams[name] = PackedStream(corpus, begin, end, sequence_length=sequence_length, shuffle_key=key)
        elif fraction > 0 or name == "train":
            raise UserError(
                f"data.split = {list(config.split)}: {name} gets {last - first} of {corpus.num_documents} documents "
                f"with {end - begin} tokens, a sample takes training.sequence_length + 1 = {sequence_length + 1}"
            )
        else:
            streams[name] = None
    train = streams["train"]
    assert train is not None
    return Splits(train=train, valid=streams["valid"], test=streams["test"])
