"""What an analysis reads: the checkpoints of a run as models, and its probe batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

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
        context: Of the model, without the padding of its vocabulary.
        inputs: The probe batch, (B, S) each.
        labels: (B, S).
    """

    snapshots: list[Snapshot]
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
        UserError: There are no checkpoints, one is damaged, or the data is missing or not that of the run.
    """
    folder = run_dir / "checkpoints"
    store = CheckpointStore(folder, Retention(newest=1))
    opened = [open_step(store, step) for step in store.steps()]
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
    return Material(snapshots=snapshots, context=context, inputs=inputs, labels=labels)


def _probe_batch(config: Config, micro_batches: int | None, newest: Checkpoint) -> tuple[int, Stream, Tensor]:
    """The real tokens of the vocabulary; inputs and labels of the batch that a run's own probes look at."""
    training = config.training
    prepared, splits = open_data(config)
    keys = {name: getattr(training, name) for name in ("seed", "global_batch_size", "sequence_length")}
    identity = data_identity(prepared, config.data, **keys)
    check_data_identity(newest.manifest["data"], identity, newest.manifest["progress"]["samples"])
    batches = RankBatches(
        splits.train if splits.valid is None else splits.valid,
        micro_batch=training.micro_batch_size,
        data_rank=0,
        data_size=1,
        separate_at=prepared.eod_id if config.data.separate_documents else None,
    )
    parts = list(batches.read(0, micro_batches or config.probes.micro_batches))
    tokens, positions = (torch.cat([inputs[index] for inputs, _ in parts]) for index in (0, 1))
    return (
        vocabulary_of(config, prepared.vocab_size).tokens,
        (tokens, positions),
        torch.cat([part for _, part in parts]),
    )
