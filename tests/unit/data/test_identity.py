import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megaqk.config.data import DataConfig
from megaqk.data.checksum import measured
from megaqk.data.existing import PreparedData
from megaqk.data.identity import check_data_identity, data_identity
from megaqk.data.manifest import Manifest, write_manifest
from megaqk.errors import UserError
from megaqk.runtime.agreement import Solo
from tests.corpora import write_corpus
from tests.unit.corpus.building import on_threads

LENGTH = 4
BASE: dict[str, Any] = {
    "sources": [{"corpus": "dir/a", "weight": 0.7}, {"corpus": "dir/b", "weight": 0.3}],
    "phases": [{"start_step": 40, "weights": {"b": 1}}, {"start_tokens": 4000, "weights": {"a": 1}}],
    "tokenizer": "unused",
}


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedData:
    for name in "ab":
        write_corpus(tmp_path / name, np.dtype("<u2"), [np.full(10, ord(name))] * 30)
    (tmp_path / "t.model").write_bytes(b"a tokenizer")
    return PreparedData(tmp_path / "t.model", (tmp_path / "a", tmp_path / "b"), 200, 0)


def made(
    prepared: PreparedData,
    *,
    batch: int = 8,
    run_seed: int = 1,
    length: int = LENGTH,
    comm: Any = Solo(),
    **keys: object,
) -> dict[str, Any]:
    config = DataConfig(**{**BASE, **keys})
    sizes = {"global_batch_size": batch, "sequence_length": length}
    found = data_identity(prepared, config, seed=run_seed, comm=comm, **sizes)
    assert json.loads(json.dumps(found)) == found
    return found


def test_any_number_of_ranks_finds_the_same(prepared: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megaqk.data.checksum.PROBE_BYTES", 16)
    monkeypatch.setattr("megaqk.data.checksum.MAX_PROBES", 7)
    assert on_threads(3, lambda comm: made(prepared, comm=comm)) == [made(prepared)] * 3


def with_phases(*phases: dict[str, object]) -> dict[str, object]:
    return {"phases": list(phases)}


FIRST, SECOND = BASE["phases"]


def test_what_does_not_change_a_sample_is_free(prepared: PreparedData, tmp_path: Path) -> None:
    was = made(prepared)
    check_data_identity(was, made(prepared), 10**9)
    (tmp_path / "else").mkdir()
    for path in [*tmp_path.glob("a.*"), *tmp_path.glob("b.*")]:
        path.rename(tmp_path / "else" / path.name)
    moved = PreparedData(prepared.tokenizer, (tmp_path / "else" / "a", tmp_path / "else" / "b"), 200, 0)
    check_data_identity(was, made(moved), 10**9)
    seven = [{"corpus": "x/a", "weight": 7}, {"corpus": "x/b", "weight": 3}]
    check_data_identity(was, made(moved, sources=seven, run_seed=5, seed=1), 10**9)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 2}, r"data.seed \(training.seed where null\) = 2: must be 1"),
        ({"separate_documents": True}, "data.separate_documents = True: must be False"),
        ({"length": 5}, "training.sequence_length = 5: must be 4"),
        ({"split": [0.8, 0.1, 0.1]}, r"data.split \(of source a\) = \[0.8, 0.1, 0.1\]: must be \[0.95, 0.05, 0.0\]"),
        (
            {"sources": [{"corpus": "b", "weight": 0.3}, {"corpus": "a", "weight": 0.7}]},
            "data.sources: this run began with a, b, goes on with b, a: must be the same",
        ),
        (
            {"sources": [{"corpus": "a", "weight": 0.6}, {"corpus": "b", "weight": 0.4}]},
            r"data.sources: weights = \[0.6, 0.4\]: must be \[0.7, 0.3\]",
        ),
    ],
)
def test_what_changes_a_sample_is_refused(prepared: PreparedData, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_data_identity(made(prepared), made(prepared, **changed), 1)


def test_phases_are_held_from_where_they_begin(prepared: PreparedData) -> None:
    # Phase 0 begins at sample 320, phase 1 at sample 1000.
    was = made(prepared)
    other = with_phases(FIRST, {"start_tokens": 4000, "weights": {"b": 1}})
    check_data_identity(was, made(prepared, **other), 1000)
    check_data_identity(was, made(prepared, **with_phases(FIRST)), 1000)
    check_data_identity(was, made(prepared, **with_phases()), 320)
    new = with_phases({"start_tokens": 1280, "weights": {"b": 1}}, SECOND, {"start_tokens": 8000, "weights": {"b": 1}})
    check_data_identity(was, made(prepared, **new), 2000)
    for phases, samples, message in (
        (with_phases(FIRST, {"start_tokens": 4000, "weights": {"b": 1}}), 1001, r"\[1\].weights = \[0.0, 1.0\]"),
        (with_phases(FIRST), 1001, r"\[1\]: is missing, but this run has passed it"),
        (
            with_phases(FIRST, SECOND, {"start_step": 200, "weights": {"a": 1}}),
            1601,
            r"\[2\]: is new, but this run has",
        ),
        (
            with_phases({"start_step": 30, "weights": {"b": 1}}),
            300,
            r"\[0\]: starts at sample 240, must start at 320 as before",
        ),
    ):
        with pytest.raises(UserError, match=rf"^data.phases{message}"):
            check_data_identity(was, made(prepared, **phases), samples)


@pytest.mark.parametrize("batch", [4, 16])
def test_a_phase_that_a_changed_batch_moves_is_refused_with_the_remedy(prepared: PreparedData, batch: int) -> None:
    was = made(prepared, **with_phases(FIRST))
    now = made(prepared, batch=batch, **with_phases(FIRST))
    moved = rf"^data.phases\[0\]: starts at sample {40 * batch}, must start at 320 "
    message = rf"{moved}.*give start_tokens: 1280 in place of start_step: 40"
    with pytest.raises(UserError, match=message):
        check_data_identity(was, now, 400)
    check_data_identity(was, now, min(40 * batch, 320))
    mended = made(prepared, batch=batch, **with_phases({"start_tokens": 1280, "weights": {"b": 1}}))
    check_data_identity(was, mended, 400)


def test_another_corpus_or_tokenizer_is_refused(prepared: PreparedData, tmp_path: Path) -> None:
    was = made(prepared)
    (tmp_path / "t.model").write_bytes(b"another")
    with pytest.raises(UserError, match=r"data.tokenizer: sha256 .* with which this run began"):
        check_data_identity(was, made(prepared), 1)
    (tmp_path / "t.model").write_bytes(b"a tokenizer")
    # As long as before, with the same index.
    write_corpus(tmp_path / "b", np.dtype("<u2"), [np.full(10, 7)] * 30)
    with pytest.raises(UserError, match=r"data.sources: b: holds other tokens"):
        check_data_identity(was, made(prepared), 1)


def test_a_manifest_stands_for_the_files_and_the_tokenizer(prepared: PreparedData, tmp_path: Path) -> None:
    prefix = tmp_path / "a"
    manifest = Manifest(
        documents=30, tokens=300, vocab_size=200, eod_id=0, tokenizer="t.model", tokenizer_sha256="0" * 64,
        data=measured(prefix.with_suffix(".bin")), index=measured(prefix.with_suffix(".idx")), skipped={}, source={},
    )  # fmt: skip
    write_manifest(prefix, manifest)
    one = PreparedData(None, (prefix,), 200, 0)
    found = data_identity(one, DataConfig(corpus="x"), seed=1, global_batch_size=8, sequence_length=LENGTH)
    assert found["tokenizer"] == "0" * 64
    assert found["phases"] == []
    assert found["corpora"][0]["data"] == manifest.data.checksum
    with pytest.raises(UserError, match=r"data.corpus: this run began with a, b, goes on with one corpus"):
        check_data_identity({**made(prepared), "tokenizer": "0" * 64}, found, 1)
