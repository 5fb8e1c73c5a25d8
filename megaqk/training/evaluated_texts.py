"""What a run is evaluated on."""

from dataclasses import dataclass

from megaqk.config.data import DataConfig
from megaqk.config.root import Config
from megaqk.config.validation import ValidationSetConfig
from megaqk.corpus.prepare import prepare
from megaqk.data.dataset import Dataset, PackedDataset, samples_in
from megaqk.data.existing import PreparedData
from megaqk.data.identity import tokenizer_digest
from megaqk.data.indexed import IndexedCorpus
from megaqk.data.splits import Splits
from megaqk.errors import AgreedError, UserError
from megaqk.runtime.agreement import Comm, each


@dataclass(frozen=True, kw_only=True)
class EvaluatedText:
    """Samples that an evaluation reads, each once.

    Attributes:
        prefix: Of the names of its records: `valid_`, `valid/<name>/` or `test_`.
        dataset: Where they are, in file order.
        samples: How many, from the first.
        at_the_end: Whether it is for the last evaluation alone.
    """

    prefix: str
    dataset: Dataset
    samples: int
    at_the_end: bool = False


def open_evaluated(config: Config, prepared: PreparedData, splits: Splits, comm: Comm) -> tuple[EvaluatedText, ...]:
    """What a run is evaluated on, prepared if need be; every rank of `comm` calls this.

    Raises:
        UserError: A validation set is missing, damaged or too small, or was made with another tokenizer: on all ranks.
    """
    batch, asked = config.training.global_batch_size, config.evaluation.batches
    texts = []
    if splits.valid is not None and asked != 0:
        texts.append(_text("valid_", splits.valid, asked, batch))
    for number, one in enumerate(config.evaluation.sets):
        key = f"evaluation.sets[{number}]"
        if one.text is not None and prepared.tokenizer is None:
            raise AgreedError(f"{key}.text = {one.text}: needs data.tokenizer, which is null")
        found = prepare(_data_of(one, config.data, prepared), comm, key=f"{key}.text")
        dataset = each(comm, lambda key=key, found=found: _fitting(key, found, prepared, config))  # type: ignore[misc]
        texts.append(_text(f"valid/{one.name}/", dataset, one.batches, batch))
    if splits.test is not None:
        texts.append(
            EvaluatedText(prefix="test_", dataset=splits.test, samples=splits.test.num_samples, at_the_end=True)
        )
    return tuple(texts)


def _text(prefix: str, dataset: Dataset, batches: int | None, batch: int) -> EvaluatedText:
    samples = dataset.num_samples if batches is None else min(batches * batch, dataset.num_samples)
    return EvaluatedText(prefix=prefix, dataset=dataset, samples=samples)


def _data_of(one: ValidationSetConfig, data: DataConfig, prepared: PreparedData) -> DataConfig:
    tokenizer = None if prepared.tokenizer is None else str(prepared.tokenizer)
    return data.model_copy(
        update={"text": one.text, "corpus": one.corpus, "sources": None, "phases": (), "tokenizer": tokenizer}
    )


def _fitting(key: str, found: PreparedData, prepared: PreparedData, config: Config) -> PackedDataset:
    """The samples of a validation set, made as the run's own data was."""
    [prefix] = found.corpora
    if (theirs := tokenizer_digest(found)) and theirs != tokenizer_digest(prepared):
        raise UserError(f"{key}: {prefix} was made with another tokenizer than the run's data: must be the same")
    if found.eod_id != prepared.eod_id:
        raise UserError(
            f"{key}: the documents of {prefix} end with token {found.eod_id}, must end with {prepared.eod_id}, as "
            "those of the run's data; name it in data.eod_token"
        )
    corpus, length = IndexedCorpus(prefix, trusted=True), config.training.sequence_length
    if not samples_in(corpus.num_tokens, length):
        raise UserError(
            f"{key}: {prefix} has {corpus.num_tokens} tokens, a sample takes training.sequence_length + 1 = "
            f"{length + 1}"
        )
    return PackedDataset(
        corpus, 0, corpus.num_tokens, sequence_length=length, shuffle_key=None, vocab_size=prepared.vocab_size
    )
