"""A whole run: data, engine, resume, the loop, evaluation, metrics."""

import fcntl
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist

from megaqk.config.checks import check_world, embedding_rows
from megaqk.config.loading import dump_config
from megaqk.config.root import Config
from megaqk.corpus.prepare import prepare
from megaqk.data.dataset import Dataset
from megaqk.data.identity import data_identity
from megaqk.data.splits import open_splits
from megaqk.data.unigram import unigram_perplexity
from megaqk.errors import UserError
from megaqk.model.flops import flops_per_token
from megaqk.optim.rates import GroupRate
from megaqk.runtime.device import ProcessInfo, peak_memory_bytes
from megaqk.training import checkpoints
from megaqk.training.batches import RankBatches
from megaqk.training.checkpoint_store import CheckpointStore, Progress
from megaqk.training.curves import write_curves
from megaqk.training.display import ProgressDisplay
from megaqk.training.engine import TrainingEngine, Vocabulary
from megaqk.training.metrics import METRICS_FILE, TENSORBOARD_FOLDER, MetricsWriter
from megaqk.training.peak import job_peak


def lock_run(run_dir: Path) -> TextIO:
    """Hold `run_dir` for this job until the file is closed or the process ends.

    Raises:
        UserError: If another job holds it.
    """
    lock = (run_dir / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise UserError(f"run.dir = {run_dir}: another job is writing to it; give this one another folder") from error
    return lock


def perplexity_of(loss: float) -> float:
    """Perplexity of a mean loss in nats a token, without overflow."""
    return math.exp(min(loss, 700.0))


def _tensorboard() -> str:
    """How to call TensorBoard from here: the one beside this Python, which may not be on the path."""
    beside = Path(sys.executable).with_name("tensorboard")
    return os.path.relpath(beside) if beside.exists() else "tensorboard"


class Trainer:
    """Trains a configuration to its end, from wherever its newest checkpoint is.

    Args:
        config: The run.
        process: This process, with the process group started.
    """

    def __init__(self, config: Config, process: ProcessInfo) -> None:
        self.config = config
        self.process = process
        self.run_dir = Path(config.run.dir)
        self.settings: dict[str, Any] = config.model_dump(mode="json")
        layout = check_world(config, process.world_size)
        self.layout = layout
        training = config.training

        self.prepared = prepare(config.data)
        tokens = self.prepared.vocab_size
        self.vocabulary = Vocabulary(tokens=tokens, rows=embedding_rows(config, tokens))
        splits = open_splits(
            self.prepared,
            config.data,
            sequence_length=training.sequence_length,
            seed=training.seed,
            global_batch_size=training.global_batch_size,
        )
        self.data_identity = data_identity(
            self.prepared,
            config.data,
            seed=training.seed,
            global_batch_size=training.global_batch_size,
            sequence_length=training.sequence_length,
        )
        self.train_stream = splits.train
        self.valid_stream = splits.valid
        self.evaluation_micro_batches = self._evaluation_micro_batches()

        self.store = CheckpointStore(self.run_dir / "checkpoints", keep=config.checkpoint.keep)
        first = process.rank == 0
        if first:
            self.store.folder.mkdir(parents=True, exist_ok=True)
            self.lock = lock_run(self.run_dir)
        resume_step, notes = checkpoints.find_latest(self.store, process)
        notes = [f"left out {problem}" for problem in notes]
        self.engine = TrainingEngine(config, layout, self.vocabulary, process)
        self.progress = Progress()
        if resume_step:
            self.progress, changes = checkpoints.load(
                self.store, self.engine, resume_step, config=self.settings, data=self.data_identity
            )
            notes += [f"resumed after step {resume_step}", *(f"changed since: {change}" for change in changes)]
        self.train_batches = self._rank_batches(self.train_stream)

        self.flops_per_token = flops_per_token(config.model, self.engine.inventory, training.sequence_length)
        self.peak = job_peak(process.device, training.precision)
        resumed = self.progress.step
        self.metrics = MetricsWriter(self.run_dir, resume_step=resumed, enabled=first)
        self.display = ProgressDisplay(training.steps, resume_step=resumed, enabled=first)
        self.last_valid_loss = math.nan
        self._introduce(notes)

    def _introduce(self, notes: list[str]) -> None:
        """Say what runs where."""
        total = sum(info.numel for info in self.engine.inventory)
        self.display.message(
            f"megaqk: {total / 1e6:.1f}M parameters, tensor {self.layout.tensor} x pipeline {self.layout.pipeline} x "
            f"data {self.layout.data}, ZeRO-{self.config.parallel.zero_stage}, {self.config.training.precision}, "
            f"optimizer {self.engine.implementation}, device {self.process.device.type}, "
            f"peak {self.peak / 1e9:.0f} GFLOP/s"
        )
        for note in notes:
            self.display.message(f"megaqk: {note}")

    def _evaluation_micro_batches(self) -> int:
        """Micro-batches of each data-parallel rank in an evaluation; no validation sample is read twice."""
        evaluation, training = self.config.evaluation, self.config.training
        if not evaluation.batches or self.valid_stream is None:
            return 0
        available = self.valid_stream.num_samples // (training.micro_batch_size * self.layout.data)
        if not available:
            raise UserError(
                f"data.split = {list(self.config.data.split)}: leaves {self.valid_stream.num_samples} validation "
                f"samples, fewer than training.micro_batch_size x data-parallel size = "
                f"{training.micro_batch_size * self.layout.data}; give validation more, or set evaluation.batches=0"
            )
        # Whole global batches where there is one, so that the set is the same on every topology.
        batches = min(evaluation.batches, self.valid_stream.num_samples // training.global_batch_size)
        return batches * self.layout.micro_batches or available

    def _rank_batches(self, stream: Dataset) -> RankBatches:
        return RankBatches(
            stream,
            micro_batch=self.config.training.micro_batch_size,
            data_rank=self.engine.coordinate.data,
            data_size=self.layout.data,
            separate_at=self.prepared.eod_id if self.config.data.separate_documents else None,
        )

    def train(self) -> None:
        """Train to the last step, evaluating, logging and saving on the way."""
        training, last = self.config.training, self.config.training.steps
        if self.progress.step >= last:
            self.display.message(
                f"megaqk: {self.run_dir} is already at step {self.progress.step} of {last}: nothing to train. Give "
                "another run.dir for another run"
            )
            return
        if self.process.rank == 0:
            (self.run_dir / "config.yaml").write_text(dump_config(self.config))
        self._restart_clock()
        while self.progress.step < last:
            batches = self.train_batches.read(self.progress.samples, self.layout.micro_batches)
            rates = self.engine.train_step(batches, self.progress.step, self.progress.tokens)
            self.progress = Progress(
                step=self.progress.step + 1,
                samples=self.progress.samples + training.global_batch_size,
                tokens=self.progress.tokens + training.tokens_per_step,
            )
            step = self.progress.step
            if step % self.config.logging.every == 0 or step == last:
                self._log(rates)
            self.display.advance(step)
            if self._due(self.config.evaluation.every):
                self._evaluate()
            if self._due(self.config.checkpoint.every):
                self._save()
        if self.process.rank == 0:
            self._summarise()

    def _due(self, every: int) -> bool:
        step = self.progress.step
        return step == self.config.training.steps or bool(every and step % every == 0)

    def _restart_clock(self) -> None:
        self._clock, self._clock_tokens = time.perf_counter(), self.progress.tokens

    def _log(self, rates: list[GroupRate]) -> None:
        """Write a record of the step. Reading the loss waits for the device, so it is done at logged steps only."""
        loss = float(self.engine.loss())
        memory = torch.tensor(peak_memory_bytes(self.process.device), dtype=torch.int64, device=self.process.device)
        dist.all_reduce(memory, op=dist.ReduceOp.MAX)
        self._refuse_divergence(loss)
        seconds = time.perf_counter() - self._clock
        tokens_per_second = (self.progress.tokens - self._clock_tokens) / seconds
        flops = tokens_per_second * self.flops_per_token
        record = {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "loss": loss,
            "grad_norm": self.engine.gradient_norm(),
            **{f"lr/{rate.name}": rate.lr for rate in rates},
            **{f"multiplier/{rate.name}": rate.multiplier for rate in rates},
            "tokens_per_second": tokens_per_second,
            "model_flops_per_second": flops,
            "mfu": flops / self.peak,
            "peak_memory_bytes": int(memory),
        }
        self._record(record)
        self._restart_clock()

    def _evaluate(self) -> None:
        count = self.evaluation_micro_batches
        if not count or self.valid_stream is None:
            return
        loss = float(self.engine.evaluate(self._rank_batches(self.valid_stream).read(0, count), count))
        self.last_valid_loss = loss
        self._record(
            {
                "step": self.progress.step,
                "tokens": self.progress.tokens,
                "valid_loss": loss,
                "valid_perplexity": perplexity_of(loss),
            }
        )
        self._restart_clock()

    def _record(self, record: dict[str, Any]) -> None:
        self.metrics.write(record)
        self.display.show(record)

    def _refuse_divergence(self, loss: float) -> None:
        """Stop before a model that is lost replaces one that is not. An fp16 step may overflow and be skipped."""
        norm = self.engine.gradient_norm()
        if math.isfinite(loss) and (math.isfinite(norm) or self.config.training.precision == "fp16"):
            return
        raise UserError(
            f"loss = {loss}, gradient norm = {norm} at step {self.progress.step}: training diverged; the checkpoints "
            "before it are as they were. Lower optimizer.lr, lengthen schedule.warmup_steps or clip "
            "more with optimizer.grad_clip"
        )

    def _save(self) -> None:
        self._refuse_divergence(float(self.engine.loss()))
        self.metrics.flush()
        checkpoints.save(self.store, self.engine, self.progress, config=self.settings, data=self.data_identity)
        self._restart_clock()

    def _summarise(self) -> None:
        """Draw the curves and say where everything is."""
        self.metrics.flush()
        picture = self.run_dir / "curves.png"
        write_curves(self.run_dir / METRICS_FILE, picture)
        if self.valid_stream is not None and not math.isnan(self.last_valid_loss):
            unigram = unigram_perplexity(self.train_stream, self.valid_stream, self.vocabulary.tokens)
            self.display.message(
                f"validation perplexity {perplexity_of(self.last_valid_loss):.2f}; "
                f"the unigram model of the same text has {unigram:.2f}"
            )
        self.display.message(f"curves: {picture}")
        self.display.message(f"TensorBoard: {_tensorboard()} --logdir {self.run_dir / TENSORBOARD_FOLDER}")

    def close(self) -> None:
        """Close the files and the progress bar."""
        self.metrics.close()
        self.display.close()
        if self.process.rank == 0:
            self.lock.close()
