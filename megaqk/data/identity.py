"""What of the data a run must keep when it goes on from a checkpoint: no sample may come twice, none be left out."""

import hashlib
import itertools
from pathlib import Path
from typing import Any

from megaqk.config.data import DataConfig, SourceConfig
from megaqk.data.blend import resolve_phases
from megaqk.data.checksum import joined, probe_share, share_of
from megaqk.data.existing import PreparedData
from megaqk.data.indexed import data_path, index_path
from megaqk.data.manifest import read_manifest
from megaqk.data.pattern import whole_weights
from megaqk.errors import UserError
from megaqk.runtime.agreement import Comm, Solo, agreed
from megaqk.runtime.files import sha256_of


def data_identity(
    prepared: PreparedData,
    config: DataConfig,
    *,
    seed: int,
    global_batch_size: int,
    sequence_length: int,
    comm: Comm = Solo(),
) -> dict[str, Any]:
    """Return what decides which sample comes when, in types that JSON gives back as they are.

    Corpora are named by what they hold, not by where they lie: they may be moved. The ranks of `comm`, each of which
    calls this, read a sample of a corpus without a manifest, and nothing of one that has it.
    """
    seen = agreed(comm, lambda: (tokenizer_digest(prepared), [_marks(one, share_of(comm)) for one in prepared.corpora]))
    sources: tuple[SourceConfig | None, ...] = config.sources or (None,)
    corpora = []
    for number, source in enumerate(sources):
        data, index = (_contents([marks[number][file] for _, marks in seen]) for file in (0, 1))
        split = config.split if source is None or source.split is None else source.split
        name = None if source is None else source.label
        corpora.append({"name": name, "split": list(split), "data": data, "index": index})
    return {
        "sequence_length": sequence_length,
        "seed": seed if config.seed is None else config.seed,
        "separate_documents": config.separate_documents,
        "tokenizer": seen[0][0],
        "corpora": corpora,
        "phases": _phases(config, sequence_length, global_batch_size),
    }


def tokenizer_digest(prepared: PreparedData) -> str:
    """Return the sha256 of the tokenizer, of a corpus without one as its manifest has it; empty where nothing has."""
    if prepared.tokenizer is not None:
        return sha256_of(prepared.tokenizer)
    manifest = read_manifest(prepared.corpora[0])
    return "" if manifest is None else manifest.tokenizer_sha256


_Mark = tuple[str, list[str]]


def _marks(prefix: Path, share: slice) -> list[_Mark]:
    # Of each file: its checksum where a manifest has it, else its size; and a share of its probes unless the manifest
    # has them, against which they have been held.
    manifest = read_manifest(prefix)
    if manifest is not None:
        files = manifest.files(prefix)
        return [(one.checksum, probe_share(path, share) if one.probes is None else []) for path, one in files]
    return [(str(path.stat().st_size), probe_share(path, share)) for path in (data_path(prefix), index_path(prefix))]


def _contents(marks: list[_Mark]) -> str:
    probes = joined(found for _, found in marks)
    return hashlib.sha256(" ".join([marks[0][0], *probes]).encode()).hexdigest() if probes else marks[0][0]


def _phases(config: DataConfig, sequence_length: int, global_batch_size: int) -> list[dict[str, Any]]:
    if config.sources is None:
        return []
    phases = resolve_phases(config.sources, config.phases, sequence_length, global_batch_size)
    # The first is the sources' own weights.
    steps = [None, *(phase.start_step for phase in config.phases)]
    return [
        {"start": phase.start, "start_step": step, "weights": list(phase.weights)}
        for phase, step in zip(phases, steps, strict=True)
    ]


def check_data_identity(was: dict[str, Any], now: dict[str, Any], samples: int) -> None:
    """Refuse data with which a run that goes on would see a sample twice or never, or learn another task.

    Args:
        was: The `data_identity` with which the run has come this far.
        now: That with which it is to go on.
        samples: How many samples it has consumed; phases may change from there on.
    """
    for part, key in (
        ("sequence_length", "training.sequence_length"),
        ("seed", "data.seed (training.seed where null)"),
        ("separate_documents", "data.separate_documents"),
    ):
        _check_same(key, was.get(part), now[part])
    _check_same("data.tokenizer: sha256", str(was.get("tokenizer"))[:16], now["tokenizer"][:16])
    _check_corpora(was.get("corpora", []), now["corpora"])
    _check_phases(was.get("phases", []), now["phases"], samples, now["sequence_length"])


def _check_same(key: str, was: object, now: object) -> None:
    if was != now:
        raise UserError(f"{key} = {now}: must be {was}, with which this run began")


def _check_corpora(was: list[dict[str, Any]], now: list[dict[str, Any]]) -> None:
    old, new = [one["name"] for one in was], [one["name"] for one in now]
    if old != new:
        raise UserError(
            f"data.{'corpus' if new == [None] else 'sources'}: this run began with {_named(old)}, goes on with "
            f"{_named(new)}: must be the same, in the same order (a weight of 0 leaves one out, from a later phase on)"
        )
    for before, after in zip(was, now, strict=True):
        name = after["name"]
        _check_same("data.split" if name is None else f"data.split (of source {name})", before["split"], after["split"])
        if (before["data"], before["index"]) != (after["data"], after["index"]):
            key = "data.corpus or data.text" if name is None else f"data.sources: {name}"
            raise UserError(f"{key}: holds other tokens or documents than this run began with (by its checksums)")


def _named(names: list[str | None]) -> str:
    return ", ".join("one corpus" if name is None else name for name in names) or "nothing"


def _check_phases(was: list[dict[str, Any]], now: list[dict[str, Any]], samples: int, sequence_length: int) -> None:
    # The first is given by the sources and always begins at 0; the others are counted as in data.phases.
    for number, (before, after) in enumerate(itertools.zip_longest(was, now), start=-1):
        key = f"data.phases[{number}]"
        # What has begun in one may come later in the other, as a phase counted in steps does with larger batches.
        if all(phase is None or phase["start"] >= samples for phase in (before, after)):
            return
        if before is None or after is None:
            raise UserError(
                f"{key}: is {'new' if before is None else 'missing'}, but this run has passed it: phases may change "
                f"from sample {samples} on"
            )
        if before["start"] != after["start"]:
            advice = ""
            if after["start_step"] is not None and after["start_step"] == before["start_step"]:
                advice = (
                    "; training.global_batch_size has changed, so give start_tokens: "
                    f"{before['start'] * sequence_length} in place of start_step: {after['start_step']}"
                )
            raise UserError(
                f"{key}: starts at sample {after['start']}, must start at {before['start']} as before, since this run "
                f"has consumed {samples} samples{advice}"
            )
        if whole_weights(before["weights"]) != whole_weights(after["weights"]):
            raise UserError(
                f"{'data.sources: weights' if number < 0 else f'{key}.weights'} = {after['weights']}: must be "
                f"{before['weights']}, with which this run began; a new phase with start_tokens from "
                f"{samples * sequence_length} on may change them"
            )
