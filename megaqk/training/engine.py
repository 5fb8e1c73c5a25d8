"""One interface over DeepSpeed's plain and pipeline engines."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.pipe.topology import PipelineParallelGrid
from torch import Tensor, nn

from megaqk.config.checks import Layout
from megaqk.config.deepspeed import deepspeed_config
from megaqk.config.root import Config
from megaqk.model.batch import Batch, Stream
from megaqk.model.context import model_context
from megaqk.model.decoder import Decoder, parameter_inventory
from megaqk.model.init import initialize
from megaqk.optim.groups import ParameterGroup, compare_groups_across_ranks, groups_missing_on, plan_groups
from megaqk.optim.multipliers import Moment
from megaqk.optim.optimizers import AdamW, OptimizerOwner, build_optimizer
from megaqk.optim.rates import GroupRate, Rates, apply_rates
from megaqk.parallel.groups import tensor_parallel
from megaqk.parallel.rng import DropoutRng
from megaqk.parallel.sharding import new_parameter
from megaqk.parallel.topology import ParallelDims
from megaqk.parallel.vocabulary import IGNORE_INDEX
from megaqk.runtime.device import ProcessInfo
from megaqk.runtime.quiet import quiet
from megaqk.training.deepspeed_engines import PlainEngine, StagedEngine
from megaqk.training.partitioning import partitioned_from_birth, whole
from megaqk.training.stages import StagedDecoder, deepspeed_topology

ANCHOR_SIZE = 64
"""Elements of the inert tensor that stands for a parameter group on a stage that owns none of its parameters."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Size of the vocabulary.

    Attributes:
        tokens: Real tokens.
        rows: Rows of the embedding table, padding included.
    """

    tokens: int
    rows: int


def to_device(part: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """A part of a micro-batch on a device, without waiting for the copy."""
    first, second = part
    return first.to(device, non_blocking=True), second.to(device, non_blocking=True)


class TrainingEngine:
    """A decoder, its optimizer and one step of training, on this process's place in the topology.

    Args:
        config: The run.
        layout: What the world size makes of it.
        vocabulary: Size of the vocabulary.
        process: This process.
        owners: Optimizers beside AdamW; see `plan_groups`.
    """

    def __init__(
        self,
        config: Config,
        layout: Layout,
        vocabulary: Vocabulary,
        process: ProcessInfo,
        owners: Sequence[OptimizerOwner] = (),
    ) -> None:
        self.config = config
        self.layout = layout
        self.vocabulary = vocabulary
        self.process = process
        parallel = config.parallel
        self.dims = ParallelDims(pipeline=layout.pipeline, data=layout.data, tensor=layout.tensor)
        self.coordinate = self.dims.coordinate(process.rank)
        self.tp = tensor_parallel(self.dims, sequence=parallel.sequence)
        self.rng = DropoutRng(seed=config.training.seed, tensor_rank=self.coordinate.tensor)
        self.context = context = model_context(
            config, tokens=vocabulary.tokens, rows=vocabulary.rows, tp=self.tp, rng=self.rng
        )
        self.inventory = parameter_inventory(config, rows=vocabulary.rows)
        adamw = AdamW(config.optimizer, process.device)
        self.owners = {owner.name: owner for owner in (adamw, *owners)}
        self.groups = plan_groups(config, self.inventory, owners)
        self.rates = Rates(config, self.groups)
        self.implementation = " + ".join((adamw.description, *(owner.name for owner in owners)))
        compare_groups_across_ranks(self.groups)

        self.staged = parallel.pipeline > 1
        self.module: StagedDecoder | Decoder
        settings = deepspeed_config(config, layout, cuda=process.device.type == "cuda")
        with quiet():
            if self.staged:
                self.module = StagedDecoder(context, self.dims, layout.layers_per_stage)
                grid = self.module.mpu()
            else:
                grid = PipelineParallelGrid(deepspeed_topology(self.dims))
                with partitioned_from_birth(settings, grid):
                    self.module = Decoder(context)
            self.parameters = self.module.global_parameters()
            for name, parameter in self.parameters.items():
                with whole(parameter, write=True):
                    initialize({name: parameter}, context, config.training.seed)
            self.engine = (StagedEngine if self.staged else PlainEngine)(
                args=None,
                model=self.module,
                optimizer=partial(build_optimizer, tuple(self.owners.values())),
                model_parameters=self._optimizer_groups(),
                mpu=grid,
                config=settings,
                config_class=DeepSpeedConfig(settings, grid),
            )
        self.engine.attach(self.tp)
        self.data_group: dist.ProcessGroup = grid.get_data_parallel_group()
        self._loss = torch.zeros((), device=process.device)

    def _optimizer_groups(self) -> list[dict[str, Any]]:
        """The planned groups over this rank's parameters: the same names in the same order on every rank, none empty.

        DeepSpeed drops a group that is empty on a rank and then reduces one gradient norm for each group that is
        left, which hangs where the ranks' counts differ.
        """
        anchors = nn.ParameterDict()
        for name in groups_missing_on(self.groups, self.parameters):
            anchor = new_parameter((ANCHOR_SIZE,), self.tp)
            anchor.ds_pipe_replicated = False  # type: ignore[attr-defined]
            nn.init.zeros_(anchor)
            anchors[name.replace(".", "_")] = anchor.to(self.process.device)
        if anchors:
            self.module.anchors = anchors
        return [self._optimizer_group(group, anchors) for group in self.groups]

    def _optimizer_group(self, group: ParameterGroup, anchors: nn.ParameterDict) -> dict[str, Any]:
        members = [self.parameters[name] for name in group.parameters if name in self.parameters]
        if not members:
            members = [anchors[group.name.replace(".", "_")]]
        return {"name": group.name, "optimizer": group.optimizer, "params": members, "weight_decay": 0.0}

    def train_step(
        self,
        batches: Iterator[tuple[Stream, Tensor]],
        step: int,
        tokens: int | None = None,
        *,
        first_sample: int | None = None,
        signals: Mapping[str, float] | None = None,
    ) -> list[GroupRate]:
        """One optimizer step.

        Args:
            batches: This rank's micro-batches, inputs and labels; consumed on the first and last pipeline stage only.
            step: Optimizer steps taken before this one.
            tokens: Tokens learned from before this step; None where every step had as many as this one.
            first_sample: Samples learned from before this step; None where every step had as many as this one.
            signals: Measured values for the multipliers, the same on every rank.

        Returns:
            The learning rates that the step was taken with.
        """
        training = self.config.training
        self.rng.begin_step(
            step * training.global_batch_size if first_sample is None else first_sample,
            micro_batch_size=training.micro_batch_size,
            data_rank=self.coordinate.data,
            data_size=self.dims.data,
        )
        rates = self.rates.at(Moment(step, tokens, signals or {}))
        apply_rates(self.engine.optimizer.param_groups, rates)
        weighted = self._weighted(batches, self.layout.micro_batches)
        if self.staged:
            self._loss = self.engine.train_batch(weighted)
            return rates
        self.engine.train()
        total = torch.zeros((), device=self.process.device)
        for _ in range(self.layout.micro_batches):
            loss = self._forward(next(weighted))
            self.engine.backward(loss)
            self.engine.step()
            total += loss.detach()
        self._loss = total / self.layout.micro_batches
        return rates

    def _weighted(self, batches: Iterator[tuple[Stream, Tensor]], count: int) -> Iterator[Batch]:
        """Micro-batches whose labels weigh alike over the whole global batch."""
        if not self.config.data.separate_documents:
            # Every label counts: those of a micro-batch are a known part of all.
            return ((inputs, (labels, torch.tensor(1 / labels.numel()))) for inputs, labels in batches)
        if self.coordinate.pipeline not in (0, self.dims.pipeline - 1):
            return iter(())  # the stages between read none
        held = list(islice(batches, count))
        scored = torch.tensor(
            sum(int((labels != IGNORE_INDEX).sum()) for _, labels in held), device=self.process.device
        )
        dist.all_reduce(scored, group=self.data_group)
        weight = count * self.dims.data / scored.clamp(min=1)
        return iter([(inputs, (labels, weight)) for inputs, labels in held])

    def _forward(self, batch: Batch) -> Tensor:
        inputs, labels = (to_device(part, self.process.device) for part in batch)
        return self.engine(inputs, labels)  # type: ignore[no-any-return]

    def loss(self) -> Tensor:
        """Mean loss of the last step over all ranks; every rank must call it."""
        return self._loss if self.staged else self._mean_over_data(self._loss)

    def _mean_over_data(self, value: Tensor) -> Tensor:
        if self.dims.data == 1:
            return value
        total = value.clone()
        dist.all_reduce(total, group=self.data_group)
        return total / self.dims.data

    @torch.no_grad()
    def evaluate(self, batches: Iterable[tuple[Stream, Tensor]], count: int) -> Tensor:
        """Mean loss over `count` micro-batches of every data-parallel rank, without dropout."""
        weighted = self._weighted(iter(batches), count)
        if self.staged:
            return self.engine.eval_batch(weighted, num_micro_batches=count)  # type: ignore[no-any-return]
        self.engine.eval()
        total = torch.zeros((), device=self.process.device)
        for batch in islice(weighted, count):
            total += self._forward(batch)
        return self._mean_over_data(total / count)

    def reapply_configuration(self) -> None:
        """Undo what a checkpoint brought back but the configuration decides; lr and decay are set at each step."""
        optimizer = self.engine.optimizer
        for group in optimizer.param_groups:
            group.update(self.owners[group["optimizer"]].settings)
        if hasattr(optimizer, "clip_grad"):
            optimizer.clip_grad = self.config.optimizer.grad_clip

    def gradient_norm(self) -> float:
        """Norm of the last step's gradient before clipping; infinite if an fp16 step overflowed."""
        norm = self.engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")
