from pathlib import Path

import numpy as np
import pytest

from megaqk.config.data import DataConfig
from megaqk.config.loading import build_config
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
    assert splits.valid is not None
    samples = splits.valid.read(np.arange(splits.valid.num_samples))
    assert len(np.unique(samples[:, 0])) == len(samples) == splits.valid.num_samples
    sources = sources_of(samples)
    assert sources.count(0) == pytest.approx(len(samples) / 2, abs=1)


def test_a_source_that_is_never_drawn_may_be_too_small(prepared: PreparedData, tmp_path: Path) -> None:
    write_corpus(tmp_path / "b", np.dtype("<u2"), [np.arange(3)])
    sources = [{"corpus": name, "weight": weight} for name, weight in (("a", 1), ("b", 0), ("c", 1))]
    keys = {"sources": sources, "tokenizer": "unused", "split": [0.5, 0.5, 0]}
    splits = open_splits(prepared, DataConfig(**keys), sequence_length=LENGTH, seed=3)
    assert set(sources_of(splits.train.read(np.arange(100)))) == {0, 2}
    drawn_later = DataConfig(**keys, phases=[{"start_tokens": 40, "weights": {"b": 1}}])
    with pytest.raises(UserError, match=r"^data.split = \[0.5, 0.5, 0.0\]: train of source b gets 0 of 1 documents"):
        open_splits(prepared, drawn_later, sequence_length=LENGTH, seed=3)


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
    disordered = [{"start_step": 9, "weights": {"a": 1}}, {"start_tokens": 8, "weights": {"a": 1}}]
    with pytest.raises(
        UserError,
        match=r"^data.phases\[1\].start_tokens = 8: is sample 2, must come after .*sample 72",
    ):
        opened(prepared, config(disordered))
    with pytest.raises(UserError, match=r"^data.split = \[0.0, 1.0, 0.0\]: train of source a, the first, must be"):
        opened(prepared, config(split=[0, 1, 0]))


SOURCES = [{"corpus": "x/a", "weight": 1}, {"corpus": "x/b", "weight": 1}]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sources": [SOURCES[0], {"corpus": "y/a", "weight": 1}]}, "data.sources[1].name = a: two are called so"),
        ({"sources": SOURCES, "tokenizer": None}, "data.tokenizer = null: must be given with data.sources"),
        ({"sources": [SOURCES[0], {"corpus": "b", "weight": -1}]}, "data.sources[1].weight = -1: must be at least 0"),
        ({"sources": [{"corpus": "a", "weight": 0}]}, "data.sources[0].weight = 0.0: at least one source must have"),
        ({"sources": [SOURCES[0], SOURCES[1] | {"split": [1, 1, 0]}]}, "data.sources[1].split = [1.0, 1.0, 0.0]: must"),
        (
            {"phases": [{"start_step": 1, "weights": {"z": 1}}]},
            "data.phases[0].weights = {z: 1.0}: no source is",
        ),
        ({"phases": [{"start_step": 1, "weights": {"a": 0}}]}, "data.phases[0].weights = {a: 0.0}: at least one must"),
        ({"phases": [{"weights": {"a": 1}}]}, "data.phases[0].start_step = null: exactly one of start_step and"),
        (
            {"sources": None, "text": "t", "phases": [{"start_step": 1, "weights": {"a": 1}}]},
            "data.phases[0].weights = ",
        ),
        ({"text": "t"}, "data.text = t: exactly one of corpus, sources and text must be given; got sources, text"),
        ({"sources": None}, "data.corpus = null: exactly one of corpus, sources and text must be given; got none"),
        ({"tokenizer": None, "eod_token": "<eos>"}, "data.eod_token = <eos>: needs tokenizer, which is null"),
    ],
)
def test_refusals_begin_with_the_full_key(keys: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        build_config({"data": {"sources": SOURCES, "tokenizer": "t", **keys}})
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)
