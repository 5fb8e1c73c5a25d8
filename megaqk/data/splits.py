"""Training, validation and test: contiguous runs of whole documents."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megaqk.config.data import DataConfig
from megaqk.data.blend import BlendedDataset, Phase, resolve_phases
from megaqk.data.dataset import Dataset, PackedDataset, samples_in
from megaqk.data.existing import PreparedData
from megaqk.data.indexed import IndexedCorpus
from megaqk.data.pattern import whole_weights
from megaqk.errors import UserError

NAMES = ("train", "valid", "test")


@dataclass(frozen=True)
class Splits:
    """The three parts of the data; None is a part that data.split gives nothing, or a test part without a sample.

    Training is shuffled, differently in each epoch; in the others positions [0, num_samples) are all, in file order.
    """

    train: Dataset
    valid: Dataset | None
    test: Dataset | None


def document_bounds(num_documents: int, split: Sequence[float]) -> list[int]:
    """Return the len(split) + 1 document numbers between which the parts lie, rounded to the nearest."""
    bounds = [min(round(total * num_documents), num_documents) for total in itertools.accumulate(split)]
    return [0, *bounds[:-1], num_documents]


def open_splits(
    prepared: PreparedData,
    config: DataConfig,
    *,
    sequence_length: int,
    seed: int,
    global_batch_size: int | None = None,
) -> Splits:
    """Open the samples of prepared corpora; they are memory-mapped, so this costs no memory of their size.

    Of a blend, validation and test have the proportions of the start of the run and are as long as no source repeats;
    sources without such a part are left out. data.seed goes before `seed`, and `global_batch_size` is what phases that
    start at a step are counted in.

    Raises:
        UserError: A corpus is malformed, or training or validation is asked for and too small for one sample.
    """
    order = ("train", seed if config.seed is None else config.seed)
    vocab_size = prepared.vocab_size
    if config.sources is None:
        cut = _Cut("data.split", config.split, "", sequence_length)
        train, valid, test = cut.open(prepared.corpora[0], order, vocab_size)
        if train is None:
            raise UserError(f"{cut.key} = {list(cut.split)}: the first fraction, for training, must be above 0")
        return Splits(train, valid, test)
    phases = resolve_phases(config.sources, config.phases, sequence_length, global_batch_size)
    by_source: list[_Parts] = []
    for number, (prefix, source) in enumerate(zip(prepared.corpora, config.sources, strict=True)):
        if not any(phase.weights[number] for phase in phases):
            by_source.append((None, None, None))
            continue
        own = source.split is not None
        key, split = f"data.sources[{number}].split" if own else "data.split", source.split or config.split
        cut = _Cut(key, split, f" of source {source.label}", sequence_length)
        # By name: adding or removing a source leaves the order inside the others as it was.
        parts = cut.open(prefix, (*order, source.label), vocab_size)
        if parts[0] is None:
            raise UserError(f"{key} = {list(split)}: source {source.label} has a weight, but nothing for training")
        by_source.append(parts)
    kept = [(train, number) for number, (train, _, _) in enumerate(by_source) if train is not None]
    train_phases = [Phase(one.start, tuple(one.weights[number] for _, number in kept)) for one in phases]
    return Splits(
        BlendedDataset([train for train, _ in kept], train_phases),
        _held_out([valid for _, valid, _ in by_source], phases[0].weights),
        _held_out([test for _, _, test in by_source], phases[0].weights),
    )


_Parts = tuple[PackedDataset | None, PackedDataset | None, PackedDataset | None]


@dataclass(frozen=True)
class _Cut:
    """How one corpus is cut: the fractions, the key that has them, and whose they are, for messages."""

    key: str
    split: Sequence[float]
    whose: str
    sequence_length: int

    def open(self, prefix: Path, shuffle_key: tuple[int | str, ...], vocab_size: int) -> _Parts:
        # `prepare` has checked the whole of it, once for all ranks.
        corpus = IndexedCorpus(prefix, trusted=True)
        bounds = itertools.pairwise(document_bounds(corpus.num_documents, self.split))
        parts: list[PackedDataset | None] = []
        for name, fraction, (first, last) in zip(NAMES, self.split, bounds, strict=True):
            begin, end = corpus.start_of(first), corpus.start_of(last)
            enough = samples_in(end - begin, self.sequence_length) > 0
            # No run reads the test part: a corpus of a few documents must not fail for want of one.
            if fraction == 0 or (name == "test" and not enough):
                parts.append(None)
                continue
            if not enough:
                raise UserError(
                    f"{self.key} = {list(self.split)}: {name}{self.whose} gets {last - first} of "
                    f"{corpus.num_documents} documents with {end - begin} tokens, a sample takes "
                    f"training.sequence_length + 1 = {self.sequence_length + 1}; {self._remedy(corpus)}"
                )
            parts.append(
                PackedDataset(
                    corpus,
                    begin,
                    end,
                    sequence_length=self.sequence_length,
                    shuffle_key=shuffle_key if name == "train" else None,
                    vocab_size=vocab_size,
                )
            )
        train, valid, test = parts
        return train, valid, test

    def _remedy(self, corpus: IndexedCorpus) -> str:
        found, override = [], self.key.replace("[", ".").replace("]", "")
        for tenths in range(1, 10):
            middle = corpus.start_of(document_bounds(corpus.num_documents, (1 - tenths / 10, tenths / 10))[1])
            if min(samples_in(part, self.sequence_length) for part in (middle, corpus.num_tokens - middle)):
                found.append(f"give validation more ({override}=[{(10 - tenths) / 10},{tenths / 10},0])")
                break
        if samples_in(corpus.num_tokens, self.sequence_length):
            found.append(f"train without validation ({override}=[1,0,0])")
        found.append("shorten training.sequence_length")
        found.append("or prepare .txt files with --text-unit paragraph or line, which makes more documents of each")
        return ", ".join(found)


def _held_out(datasets: Sequence[PackedDataset | None], weights: Sequence[float]) -> Dataset | None:
    kept = [(one, weight) for one, weight in zip(datasets, weights, strict=True) if one is not None and weight]
    if not kept:
        return None
    # In integers: a quotient of extreme weights is no float.
    whole = whole_weights([weight for _, weight in kept])
    num_samples = min(one.num_samples * sum(whole) // weight for (one, _), weight in zip(kept, whole, strict=True))
    phase = Phase(0, tuple(weight for _, weight in kept))
    return BlendedDataset([one for one, _ in kept], [phase], num_samples=max(num_samples, 1))
