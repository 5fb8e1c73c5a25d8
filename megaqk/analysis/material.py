"""What an analysis reads: the checkpoints of a run as models, and its probe batch."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megaqk.checkpoint.damage import DamagedError
from megaqk.checkpoint.reader import Checkpoint, open_step
from megaqk.checkpoint.retention import Retention
from megaqk.checkpoint.store import CheckpointStore
from megaqk.config.loading import restore_config
from megaqk.config.root import Config
from megaqk.corpus.prepare import open_data
from megaqk.data.identity import check_data_identity, data_identity
from megaqk.errors import UserError
from megaqk.model.batch import Stream
from megaqk.model.context import ModelContext, model_context
from megaqk.model.decoder import Decoder
from megaqk.model.init import initialize
from megaqk.model.vocab_size import vocabulary_of
from megaqk.training.batches import RankBatches
from megaqk.training.metrics import METRICS_FILE, read_metrics


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The model at a step.

    Attributes:
        step: Steps taken.
        tokens: Tokens learned from.
        config: The configuration with which the run came here.
        checkpoint: Where the weights are; None: those before the first step.
    """

    step: int
    tokens: int
    config: Config
    checkpoint: Checkpoint | None


@dataclass(frozen=True, kw_only=True)
class Material:
    """What is analysed.

    Attributes:
        snapshots: By step.
        rates: What the run has recorded that its steps were taken with: `lr/<group>` by step.
        context: Of the model, without the padding of its vocabulary.
        inputs: The probe batch, (B, S) each.
        labels: (B, S).
    """

    snapshots: list[Snapshot]
    rates: dict[int, dict[str, float]]
    context: ModelContext
    inputs: Stream
    labels: Tensor

    @property
    def config(self) -> Config:
        """The configuration of the newest checkpoint."""
        return self.snapshots[-1].config

    def weights(self, snapshot: Snapshot) -> dict[str, Tensor]:
        """Every parameter of the model at a snapshot, by global name, fp32.

        Raises:
            UserError: The checkpoint is damaged.
        """
        if snapshot.checkpoint is None:
            initial = Decoder(self.context).global_parameters()
            initialize(initial, self.context, snapshot.config.training.seed)
            return {name: parameter.detach() for name, parameter in initial.items()}
        return {name: snapshot.checkpoint.weight(name) for name in snapshot.checkpoint.parameters}

    def decoder(self, weights: Mapping[str, Tensor], dtype: torch.dtype) -> Decoder:
        """The model of some weights, in a precision."""
        decoder = Decoder(self.context).to(dtype).eval().requires_grad_(False)
        for name, parameter in decoder.global_parameters().items():
            # Rows of the vocabulary beyond the real tokens are padding.
            parameter.copy_(weights[name][: len(parameter)])
        return decoder


def open_material(run_dir: Path, micro_batches: int | None, *, initial: bool) -> Material:
    """Open the checkpoints of a run and its data.

    Args:
        run_dir: The folder of the run.
        micro_batches: Of the probe batch; None: `probes.micro_batches`.
        initial: Whether the weights before the first step are analysed too.

    Raises:
        UserError: There are no checkpoints, or the data is missing or not that of the run.
    """
    folder = run_dir / "checkpoints"
    store = CheckpointStore(folder, Retention(newest=1))
    opened = []
    for step in store.steps():
        try:
            opened.append(open_step(store, step))
        except DamagedError as error:
            sys.stderr.write(f"passed over {error}\n")
    if not opened:
        raise UserError(f"RUN_DIR = {run_dir}: has no checkpoints: must be the run.dir of a run that has saved one")
    snapshots = [
        Snapshot(
            step=one.manifest["progress"]["step"],
            tokens=one.manifest["progress"]["tokens"],
            config=restore_config(one.manifest["config"]),
            checkpoint=one,
        )
        for one in opened
    ]
    if initial:
        snapshots.insert(0, Snapshot(step=0, tokens=0, config=snapshots[0].config, checkpoint=None))
    config = snapshots[-1].config
    tokens, inputs, labels = _probe_batch(config, micro_batches, opened[-1])
    context = model_context(config, tokens=tokens, rows=tokens)
    recorded = read_metrics(run_dir / METRICS_FILE) if (run_dir / METRICS_FILE).exists() else ()
    rates = {record["step"]: record for record in recorded if "loss" in record}
    return Material(snapshots=snapshots, rates=rates, context=context, inputs=inputs, labels=labels)


def _probe_batch(config: Config, micro_batches: int | None, newest: Checkpoint) -> tuple[int, Stream, Tensor]:
    """The real tokens of the vocabulary; inputs and labels of the batch that a run's own probes look at."""
    training = config.training
    prepared, splits = open_data(config)
    keys = {name: getattr(training, name) for name in ("seed", "global_batch_size", "sequence_length")}
    identity = data_identity(prepared, config.data, **keys)
    check_data_identity(newest.manifest["data"], identity, newest.manifest["progress"]["samples"])
    if micro_batches is None:
        key, count = "probes.micro_batches", config.probes.micro_batches
    else:
        key, count = "--micro-batches", micro_batches
    batches = RankBatches(
        splits.probed(key, count, training.micro_batch_size),
        micro_batch=training.micro_batch_size,
        data_rank=0,
        data_size=1,
        separate_at=prepared.eod_id if config.data.separate_documents else None,
    )
    parts = list(batches.read(0, count))
    tokens, positions = (torch.cat([inputs[index] for inputs, _ in parts]) for index in (0, 1))
    return (
        vocabulary_of(config, prepared.vocab_size).tokens,
        (tokens, positions),
        torch.cat([part for _, part in parts]),
    )
