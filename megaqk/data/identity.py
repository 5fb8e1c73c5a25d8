"""What of the data a run must keep when it goes on from a checkpoint: no sample may come twice, none be left out."""

import itertools
from pathlib import Path
from typing import Any

from megaqk.config.data import DataConfig, SourceConfig
from megaqk.data.blend import resolve_stages
from megaqk.data.checksum import sampled_checksum
from megaqk.data.existing import PreparedData
from megaqk.data.indexed import data_path, index_path
from megaqk.data.manifest import read_manifest
from megaqk.data.pattern import whole_weights
from megaqk.errors import UserError
from megaqk.runtime.files import sha256_of


def data_identity(
    prepared: PreparedData, config: DataConfig, *, seed: int, global_batch_size: int, sequence_length: int
) -> dict[str, Any]:
    """Return what decides which sample comes when, in types that JSON gives back as they are.

    Corpora are named by what they hold, not by where they lie: they may be moved. It reads at most a sample of a corpus
    without a manifest, and nothing of one that has it.

    Args:
        prepared: What `prepare` returned.
        config: The `data` section.
        seed: training.seed; data.seed takes its place where given.
        global_batch_size: Samples of a step, which stages that start at a step are counted in.
        sequence_length: Tokens a sample trains on.

    Raises:
        UserError: A file cannot be read, or the stages are out of order.
    """
    manifest = read_manifest(prepared.corpora[0])
    if prepared.tokenizer is not None:
        tokenizer = sha256_of(prepared.tokenizer)
    else:
        tokenizer = "" if manifest is None else manifest.tokenizer_sha256
    sources: tuple[SourceConfig | None, ...] = config.sources or (None,)
    return {
        "sequence_length": sequence_length,
        "seed": seed if config.seed is None else config.seed,
        "separate_documents": config.separate_documents,
        "tokenizer": tokenizer,
        "corpora": [
            {
                "name": None if source is None else source.label,
                "split": list(config.split if source is None or source.split is None else source.split),
                **_contents(prefix),
            }
            for prefix, source in zip(prepared.corpora, sources, strict=True)
        ],
        "stages": _stages(config, sequence_length, global_batch_size),
    }


def _contents(prefix: Path) -> dict[str, Any]:
    manifest = read_manifest(prefix)
    if manifest is not None:
        return {"data": manifest.data.checksum, "index": manifest.index.checksum}
    return {"data": sampled_checksum(data_path(prefix)), "index": sampled_checksum(index_path(prefix))}


def _stages(config: DataConfig, sequence_length: int, global_batch_size: int) -> list[dict[str, Any]]:
    if config.sources is None:
        return []
    stages = resolve_stages(config.sources, config.stages, sequence_length, global_batch_size)
    # The first is the sources' own weights.
    steps = [None, *(stage.start_step for stage in config.stages)]
    return [
        {"start": stage.start, "start_step": step, "weights": list(stage.weights)}
        for stage, step in zip(stages, steps, strict=True)
    ]


def check_data_identity(was: dict[str, Any], now: dict[str, Any], samples: int) -> None:
    """Refuse data with which a run that goes on would see a sample twice or never, or learn another task.

    Stages may change from where the run is: only what began before `samples` is compared.

    Args:
        was: The `data_identity` with which the run has come this far.
        now: That with which it is to go on.
        samples: How many samples it has consumed.

    Raises:
        UserError: Naming the key to change back.
    """
    for part, key in (
        ("sequence_length", "training.sequence_length"),
        ("seed", "data.seed (training.seed where null)"),
        ("separate_documents", "data.separate_documents"),
    ):
        if was.get(part) != now[part]:
            raise UserError(f"{key} = {now[part]}: must be {was.get(part)}, with which this run began")
    if was.get("tokenizer") != now["tokenizer"]:
        raise UserError(
            f"data.tokenizer: sha256 {now['tokenizer'][:16]}, must be {str(was.get('tokenizer'))[:16]}, with which "
            "this run began"
        )
    _check_corpora(was.get("corpora", []), now["corpora"])
    _check_stages(was.get("stages", []), now["stages"], samples, now["sequence_length"])


def _check_corpora(was: list[dict[str, Any]], now: list[dict[str, Any]]) -> None:
    old, new = [one["name"] for one in was], [one["name"] for one in now]
    if old != new:
        raise UserError(
            f"data.{'corpus' if new == [None] else 'sources'}: this run began with {_named(old)}, goes on with "
            f"{_named(new)}: must be the same, in the same order (a weight of 0 leaves one out, from a later stage on)"
        )
    for before, after in zip(was, now, strict=True):
        name = after["name"]
        if before["split"] != after["split"]:
            key = "data.split" if name is None else f"data.split (of source {name})"
            raise UserError(f"{key} = {after['split']}: must be {before['split']}, with which this run began")
        if (before["data"], before["index"]) != (after["data"], after["index"]):
            key = "data.corpus or data.text" if name is None else f"data.sources: {name}"
            raise UserError(f"{key}: holds other tokens or documents than this run began with (by its checksums)")


def _named(names: list[str | None]) -> str:
    return ", ".join("one corpus" if name is None else name for name in names) or "nothing"


def _check_stages(was: list[dict[str, Any]], now: list[dict[str, Any]], samples: int, sequence_length: int) -> None:
    # The first is given by the sources and always begins at 0; the others are counted as in data.stages.
    old = [stage for stage in was if stage["start"] < samples]
    new = [stage for stage in now if stage["start"] < samples]
    for number, (before, after) in enumerate(itertools.zip_longest(old, new), start=-1):
        if before is not None and after is None:
            # It may still be there, but come later, as a stage counted in steps does with larger batches.
            after = next(iter(now[number + 1 : number + 2]), None)
        elif before is None:
            before = next(iter(was[number + 1 : number + 2]), None)
        if before is None or after is None:
            raise UserError(
                f"data.stages: stage {number} is {'new' if before is None else 'missing'}, but this run has passed it: "
                f"stages may change from sample {samples} on"
            )
        if before["start"] != after["start"]:
            step = after["start_step"]
            by_batch = step is not None and step == before["start_step"]
            advice = (
                f"; training.global_batch_size has changed, so give start_tokens: "
                f"{before['start'] * sequence_length} in place of start_step: {step}"
                if by_batch
                else ""
            )
            raise UserError(
                f"data.stages: stage {number} starts at sample {after['start']}, must start at {before['start']} as "
                f"before, since this run has consumed {samples} samples{advice}"
            )
        if whole_weights(before["weights"]) != whole_weights(after["weights"]):
            key = "data.sources: weights" if number < 0 else f"data.stages: stage {number}: weights"
            raise UserError(
                f"{key} = {after['weights']}: must be {before['weights']}, with which this run began; a new stage "
                f"with start_tokens from {samples * sequence_length} on may change them"
            )
