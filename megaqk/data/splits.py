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


@dataclass(frozen=True)
class Splits:
    """What a run reads."""

    train: Dataset  # shuffled, differently in each epoch
    valid: Dataset | None  # positions [0, num_samples) are all of it, in file order; None where it is given nothing
    test: Dataset | None = None  # likewise; None where nobody asks for it

    def probed(self, key: str, micro_batches: int, micro_batch: int) -> Dataset:
        """What probes read from the start: validation, or training where there is none.

        Raises:
            UserError: It has no such number of micro-batches, which `key` asks for.
        """
        dataset = self.train if self.valid is None else self.valid
        if micro_batches * micro_batch > dataset.num_samples:
            most = dataset.num_samples // micro_batch
            raise UserError(f"{key} = {micro_batches}: must be at most {most}, with {dataset.num_samples} samples")
        return dataset


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
    test: bool = False,
) -> Splits:
    """Open the samples of prepared corpora; they are memory-mapped, so this costs no memory of their size.

    Of a blend, validation has the proportions of the start of the run and is as long as no source repeats; sources
    without such a part are left out; so has the test, which is opened where `test` asks for it. data.seed goes before
    `seed`, and `global_batch_size` is what phases that start at a step are counted in.

    Raises:
        UserError: A corpus is malformed, or a part of it is asked for and too small for one sample.
    """
    order = ("train", seed if config.seed is None else config.seed)
    if config.sources is None:
        cut = _Cut("data.split", config.split, "", sequence_length, prepared.vocab_size, test)
        return Splits(*cut.open(prepared.corpora[0], order))
    phases = resolve_phases(config.sources, config.phases, sequence_length, global_batch_size)
    used = [number for number in range(len(config.sources)) if any(phase.weights[number] for phase in phases)]
    parts = []
    for number in used:
        source = config.sources[number]
        key = "data.split" if source.split is None else f"data.sources[{number}].split"
        whose, split = f" of source {source.label}", source.split or config.split
        cut = _Cut(key, split, whose, sequence_length, prepared.vocab_size, test)
        # By name: adding or removing a source leaves the order inside the others as it was.
        parts.append(cut.open(prepared.corpora[number], (*order, source.label)))
    phases = [Phase(phase.start, tuple(phase.weights[number] for number in used)) for phase in phases]
    train, valid, held_back = zip(*parts, strict=True)
    weights = phases[0].weights
    return Splits(BlendedDataset(train, phases), _blended(valid, weights), _blended(held_back, weights))


@dataclass(frozen=True)
class _Cut:
    """How one corpus is cut: the fractions, the key that has them, and whose they are, for messages."""

    key: str
    split: Sequence[float]
    whose: str
    sequence_length: int
    vocab_size: int
    test: bool

    def open(
        self, prefix: Path, shuffle_key: tuple[int | str, ...]
    ) -> tuple[PackedDataset, PackedDataset | None, PackedDataset | None]:
        if not self.split[0]:
            raise UserError(f"{self.key} = {list(self.split)}: train{self.whose}, the first, must be above 0")
        # `prepare` has checked the whole of it, once for all ranks.
        corpus = IndexedCorpus(prefix, trusted=True)
        train = self._part(corpus, 0, shuffle_key)
        wanted = (bool(self.split[1]), self.test and bool(self.split[2]))
        valid, test = (self._part(corpus, part, None) if asked else None for part, asked in enumerate(wanted, start=1))
        return train, valid, test

    def _part(self, corpus: IndexedCorpus, number: int, shuffle_key: tuple[int | str, ...] | None) -> PackedDataset:
        first, last = document_bounds(corpus.num_documents, self.split)[number : number + 2]
        begin, end, length = corpus.start_of(first), corpus.start_of(last), self.sequence_length
        if not samples_in(end - begin, length):
            raise UserError(
                f"{self.key} = {list(self.split)}: {('train', 'valid', 'test')[number]}{self.whose} gets "
                f"{last - first} of {corpus.num_documents} documents with {end - begin} tokens, a sample takes "
                f"training.sequence_length + 1 = {length + 1}; {self._remedy(corpus, test=number == 2)}"
            )
        return PackedDataset(
            corpus, begin, end, sequence_length=length, shuffle_key=shuffle_key, vocab_size=self.vocab_size
        )

    def _remedy(self, corpus: IndexedCorpus, *, test: bool) -> str:
        if test:
            return "give it more, or leave it out (evaluation.test=false)"
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


def _blended(datasets: Sequence[PackedDataset | None], weights: Sequence[float]) -> Dataset | None:
    kept = [(one, weight) for one, weight in zip(datasets, weights, strict=True) if one is not None and weight]
    if not kept:
        return None
    # In integers: a quotient of extreme weights is no float.
    whole = whole_weights([weight for _, weight in kept])
    num_samples = min(one.num_samples * sum(whole) // weight for (one, _), weight in zip(kept, whole, strict=True))
    phase = Phase(0, tuple(weight for _, weight in kept))
    return BlendedDataset([one for one, _ in kept], [phase], num_samples=max(num_samples, 1))
