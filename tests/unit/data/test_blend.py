from pathlib import Path

import numpy as np
import pytest

from megaqk.config.data import DataConfig
from megaqk.data.blend import BlendedDataset
from megaqk.data.existing import PreparedData
from megaqk.data.splits import open_splits
from megaqk.errors import UserError
from tests.corpora import write_corpus

LENGTH = 4


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedData:
    # Source k holds the tokens 1000 k, 1000 k + 1, ...: a token tells its source and place.
    for number, name in enumerate("abc"):
        tokens = np.arange(401) + 1000 * number
        write_corpus(tmp_path / name, np.dtype("<u2"), np.array_split(tokens, 20))
    return PreparedData(None, tuple(tmp_path / name for name in "abc"), 3000, 0)


def config(phases: list[dict[str, object]] | None = None, **keys: object) -> DataConfig:
    sources = [{"corpus": f"dir/{name}", "weight": weight} for name, weight in zip("abc", (5, 3, 2), strict=True)]
    return DataConfig(sources=sources, phases=phases or [], tokenizer="unused", **{"split": [1, 0, 0], **keys})


def opened(prepared: PreparedData, config: DataConfig) -> BlendedDataset:
    train = open_splits(prepared, config, sequence_length=LENGTH, seed=3, global_batch_size=8).train
    assert isinstance(train, BlendedDataset)
    return train


def sources_of(samples: np.ndarray) -> list[int]:
    return (samples[:, 0] // 1000).tolist()


def test_proportions_and_epochs(prepared: PreparedData) -> None:
    stream = opened(prepared, config())
    samples = stream.read(np.arange(400))
    sources = sources_of(samples)
    assert [sources.count(k) for k in range(3)] == [200, 120, 80]
    # 100 samples an epoch: the first source goes round twice, each time through all of its samples.
    first = samples[np.array(sources) == 0, 0]
    assert sorted(first[:100]) == sorted(first[100:]) == list(range(0, 400, LENGTH))
    assert first[:100].tolist() != first[100:].tolist()


def test_a_sample_depends_on_its_position_alone(prepared: PreparedData) -> None:
    phases = [{"start_tokens": 401, "weights": {"a": 1, "c": 2}}]
    whole = opened(prepared, config(phases)).read(np.arange(500))
    for batch in (1, 7, 64):
        again = opened(prepared, config(phases))
        parts = [again.read(np.arange(at, min(at + batch, 500))) for at in range(0, 500, batch)]
        assert np.array_equal(np.concatenate(parts), whole)


def test_phases_change_the_weights_where_they_say_and_lose_nothing(prepared: PreparedData) -> None:
    # 401 tokens take 101 samples of 4; step 40 of 8 samples is sample 320.
    phases = [
        {"start_tokens": 401, "weights": {"a": 1, "c": 1}},
        {"start_step": 40, "weights": {"b": 1}},
    ]
    samples = opened(prepared, config(phases)).read(np.arange(500))
    sources = sources_of(samples)
    assert sources[:101] == sources_of(opened(prepared, config()).read(np.arange(101)))
    assert [sources[101:320].count(k) for k in range(3)] in ([109, 0, 110], [110, 0, 109])
    assert sources[320:] == [1] * 180
    # Within each source, the draws before and after a change are one uninterrupted sequence.
    alone = opened(prepared, config([{"start_step": 1, "weights": {"b": 1}}]))
    expected = alone.read(np.arange(500))
    expected = expected[np.array(sources_of(expected)) == 1]
    got = samples[np.array(sources) == 1]
    assert np.array_equal(got, expected[: len(got)])


def test_held_out_parts_repeat_no_source(prepared: PreparedData) -> None:
    splits = open_splits(prepared, config(split=[0.5, 0.5, 0]), sequence_length=LENGTH, seed=3)
    assert splits.test is None
    assert splits.valid is not None
    samples = splits.valid.read(np.arange(splits.valid.num_samples))
    assert len(np.unique(samples[:, 0])) == len(samples) == splits.valid.num_samples
    sources = sources_of(samples)
    assert sources.count(0) == pytest.approx(len(samples) / 2, abs=1)


def test_extreme_weights_do_not_overflow(prepared: PreparedData) -> None:
    weights = {"a": 1e308, "b": 1e308, "c": 1e-308}
    sources = [{"corpus": name, "weight": weight} for name, weight in weights.items()]
    splits = open_splits(
        prepared,
        DataConfig(sources=sources, tokenizer="unused", split=[0.5, 0.5, 0]),
        sequence_length=LENGTH,
        seed=3,
    )
    assert sorted(sources_of(splits.train.read(np.arange(10)))) == [0] * 5 + [1] * 5
    assert splits.valid is not None
    # 200 tokens of either of the two that count make 49 samples.
    assert splits.valid.num_samples == 98


def test_impossible_blends_are_refused(prepared: PreparedData) -> None:
    for keys, message in (
        ({"phases": [{"start_step": 1, "weights": {"z": 1}}]}, "no source is called z, the names are a, b, c"),
        ({"phases": [{"start_step": 1, "weights": {"a": 0}}]}, "at least one must be above 0"),
        ({"phases": [{"weights": {"a": 1}}]}, "exactly one of start_step and start_tokens"),
        ({"split": [1, 1, 0]}, "add up to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            config(**keys)
    with pytest.raises(ValueError, match=r"sources\[1\].name = a: two are called so"):
        DataConfig(sources=[{"corpus": "x/a", "weight": 1}, {"corpus": "y/a", "weight": 1}], tokenizer="t")
    with pytest.raises(ValueError, match="tokenizer = null"):
        DataConfig(sources=[{"corpus": "a", "weight": 1}])
    with pytest.raises(ValueError, match=r"phases\[0\].weights = .*: need data.sources"):
        DataConfig(corpus="a", phases=[{"start_step": 1, "weights": {"a": 1}}])
    disordered = [{"start_step": 9, "weights": {"a": 1}}, {"start_tokens": 8, "weights": {"a": 1}}]
    with pytest.raises(
        UserError,
        match=r"^data.phases\[1\].start_tokens = 8: is sample 2, must come after .*sample 72",
    ):
        opened(prepared, config(disordered))
    with pytest.raises(UserError, match=r"^data.split = \[0.0, 1.0, 0.0\]: source a has a weight, but nothing for"):
        opened(prepared, config(split=[0, 1, 0]))
