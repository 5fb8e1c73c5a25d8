"""One interface over DeepSpeed's plain and pipeline engines."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.config import DeepSpeedConfig
from torch import Tensor

from megaqk.config.deepspeed import deepspeed_config
from megaqk.config.root import Config
from megaqk.model.batch import Batch, Stream
from megaqk.model.context import is_compiled, model_context
from megaqk.model.decoder import Decoder, parameter_inventory
from megaqk.model.init import initialize
from megaqk.model.vocab_size import Vocabulary
from megaqk.optim.groups import describe_groups, plan_groups
from megaqk.optim.multipliers import Moment
from megaqk.optim.optimizers import AdamW, OptimizerOwner, build_optimizer
from megaqk.optim.rates import GroupRate, Rates, apply_rates
from megaqk.parallel.cross_entropy import IGNORE_INDEX
from megaqk.parallel.rng import DropoutRng
from megaqk.parallel.world import World
from megaqk.runtime.device import prefer_attention
from megaqk.runtime.logs import quiet
from megaqk.training.deepspeed_engines import PlainEngine, StagedEngine
from megaqk.training.local_groups import local_groups
from megaqk.training.pipeline import StagedDecoder
from megaqk.training.progress import Progress
from megaqk.training.zero3 import gathered_parameter, zero3_init

EVALUATED_AT_ONCE = 32
"""Micro-batches that go through the pipeline together: their losses are summed in fp32."""


def to_device(part: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """A part of a micro-batch on a device, without waiting for the copy."""
    first, second = part
    return first.to(device, non_blocking=True), second.to(device, non_blocking=True)


class TrainingEngine:
    """A decoder, its optimizer and one step of training, on this process's place in the world.

    Args:
        config: The run.
        world: The processes, connected.
        vocabulary: Size of the vocabulary.
        owners: Optimizers beside AdamW; see `plan_groups`.

    Attributes:
        inventory: Every parameter of the whole model.
        infos: The same by global name.
        groups: The plan of optimizer groups.
        group_of: The group of each parameter, by global name.
        rates: Their rates as a function of the run's progress.
        parameters: This rank's parameters by global name.
        implementation: The optimizers in words.
        engine: DeepSpeed's engine.
    """

    def __init__(
        self, config: Config, world: World, vocabulary: Vocabulary, owners: Sequence[OptimizerOwner] = ()
    ) -> None:
        self.config = config
        prefer_attention(config.training.attention, world.device)
        self.world = world
        self.vocabulary = vocabulary
        self.rng = DropoutRng(seed=config.training.seed, tensor_rank=world.coordinate.tensor)
        self.context = context = model_context(
            config,
            tokens=vocabulary.tokens,
            rows=vocabulary.rows,
            compiled=is_compiled(config, world.device),
            tp=world.tp,
            rng=self.rng,
        )
        self.inventory = parameter_inventory(config, rows=vocabulary.rows)
        adamw = AdamW(config.optimizer, world.device)
        self.owners: dict[str, OptimizerOwner] = {owner.name: owner for owner in (adamw, *owners)}
        self.infos = {info.name: info for info in self.inventory}
        self.groups = plan_groups(config, self.inventory, owners)
        self.group_of = {name: group for group in self.groups for name in group.parameters}
        self.rates = Rates(config, self.groups)
        # Ranks with different groups would hang, or train at each other's rates.
        world.require_same(describe_groups(self.groups), "parameter groups")
        self.implementation = " + ".join((adamw.description, *(owner.name for owner in owners)))
        self.staged = world.pipeline > 1
        self.module: StagedDecoder | Decoder
        settings = deepspeed_config(config, micro_batches=world.micro_batches, cuda=world.device.type == "cuda")
        with quiet():
            if self.staged:
                with world.device:
                    self.module = StagedDecoder(context, world)
            else:
                with world.device, zero3_init(settings, world.grid):
                    self.module = Decoder(context)
            for buffer in self.module.buffers():
                # DeepSpeed moves modules, except those that ZeRO-3 has partitioned.
                buffer.data = buffer.to(world.device)
            self.parameters = self.module.global_parameters()
            for name, parameter in self.parameters.items():
                with gathered_parameter(parameter, write=True):
                    initialize({name: parameter}, context, config.training.seed)
            self.engine = (StagedEngine if self.staged else PlainEngine)(
                args=None,
                model=self.module,
                optimizer=partial(build_optimizer, tuple(self.owners.values())),
                model_parameters=local_groups(self.groups, self.parameters, self.module, world.tp),
                mpu=world.grid,
                config=settings,
                config_class=DeepSpeedConfig(settings, world.grid),
            )
        self.engine.attach(world)
        self._loss = torch.zeros((), device=world.device)
        if hasattr(scaler := self._loss_scaler, "raise_error_at_min_scale"):
            # What becomes of steps that no scale saves is decided as in any precision.
            scaler.raise_error_at_min_scale = False

    def description(self) -> str:
        """What runs where, in words."""
        millions, world = sum(info.numel for info in self.inventory) / 1e6, self.world
        return (
            f"{millions:.1f}M parameters, tensor {world.tensor} x pipeline {world.pipeline} x data {world.data}, "
            f"ZeRO-{self.config.parallel.zero_stage}, {self.config.training.precision}, optimizer "
            f"{self.implementation}, device {world.device.type}, launcher {world.launch.launcher}"
        )

    def train_step(
        self, batches: Iterator[tuple[Stream, Tensor]], progress: Progress, signals: Mapping[str, float] | None = None
    ) -> list[GroupRate]:
        """One optimizer step.

        Args:
            batches: This rank's micro-batches, inputs and labels; consumed on the first and last pipeline stage only.
            progress: Where the run is before this step.
            signals: Measured values for the multipliers, the same on every rank.

        Returns:
            The learning rates that the step was taken with.
        """
        self.rng.begin_step(
            progress.samples,
            micro_batch_size=self.config.training.micro_batch_size,
            data_rank=self.world.coordinate.data,
            data_size=self.world.data,
        )
        rates = self.rates.at(Moment(progress.step, progress.tokens, signals or {}))
        # Found by name and written anew at each step: DeepSpeed and its checkpoints replace the group dicts.
        apply_rates(self.engine.optimizer.param_groups, rates)
        weighted = self._weighted(batches, self.world.micro_batches)
        if self.staged:
            self._loss = self.engine.train_batch(weighted)
            return rates
        self.engine.train()
        total = torch.zeros((), device=self.world.device)
        for _ in range(self.world.micro_batches):
            loss = self._forward(next(weighted))
            self.engine.backward(loss)
            self.engine.step()
            total += loss.detach()
        self._loss = total / self.world.micro_batches
        return rates

    def _weighted(self, batches: Iterator[tuple[Stream, Tensor]], count: int) -> Iterator[Batch]:
        """Micro-batches whose labels weigh alike over the whole global batch."""
        world, device = self.world, self.world.device
        if not self.config.data.separate_documents:
            # Every label counts: those of a micro-batch are a known part of all. Filled, not copied, on the device.
            return ((inputs, (labels, torch.full((), 1 / labels.numel(), device=device))) for inputs, labels in batches)
        if not world.reads_batches:
            return iter(())
        held = list(islice(batches, count))
        scored = torch.stack([(labels.to(device) != IGNORE_INDEX).sum() for _, labels in held]).sum()
        dist.all_reduce(scored, group=world.data_group)
        weight = count * world.data / scored.clamp(min=1)
        return iter([(inputs, (labels, weight)) for inputs, labels in held])

    def _forward(self, batch: Batch) -> Tensor:
        inputs, labels = (to_device(part, self.world.device) for part in batch)
        return self.engine(inputs, labels)  # type: ignore[no-any-return]

    def loss(self) -> Tensor:
        """Mean loss of the last step over all ranks; every rank must call it."""
        return self._loss if self.staged else self._mean_over_data(self._loss)

    def loss_and_norm(self) -> Tensor:
        """Mean loss and gradient norm of the last step, (2,) in fp64, the same bits on every rank; all must call it.

        It costs one reduction of two numbers, and nobody waits for the device.
        """
        pair = torch.empty(2, dtype=torch.float64, device=self.world.device)
        # Each rank has the mean of its data, or all have that of all.
        pair[0], pair[1] = self._loss, self.engine.get_global_grad_norm()
        dist.all_reduce(pair)
        return pair / self.world.size

    def _mean_over_data(self, value: Tensor) -> Tensor:
        if self.world.data == 1:
            return value
        total = value.clone()
        dist.all_reduce(total, group=self.world.data_group)
        return total / self.world.data

    @torch.no_grad()
    def evaluate(self, batches: Iterable[tuple[Stream, Tensor]], count: int) -> Tensor:
        """Sum of the losses of all labels that count, without dropout; every rank must call it, and has it.

        Args:
            batches: Micro-batches of this data-parallel rank; consumed on the first and last pipeline stage only.
            count: How many.

        Returns:
            A scalar in fp64, to which each micro-batch, or few of them, are added in fp32.
        """
        one, world = torch.ones((), device=self.world.device), self.world
        weighted = ((inputs, (labels, one)) for inputs, labels in batches)
        total = torch.zeros((), dtype=torch.float64, device=world.device)
        if self.staged:
            for done in range(0, count, EVALUATED_AT_ONCE):
                now = min(EVALUATED_AT_ONCE, count - done)
                # The mean over micro-batches and data-parallel ranks.
                total += self.engine.eval_batch(weighted, num_micro_batches=now).view(()).double() * now * world.data
            return total
        self.engine.eval()
        for batch in islice(weighted, count):
            total += self._forward(batch)
        if world.data > 1:
            dist.all_reduce(total, group=world.data_group)
        return total

    def owner_of(self, parameter: str) -> OptimizerOwner:
        """The optimizer that updates a parameter, by global name."""
        return self.owners[self.group_of[parameter].optimizer]

    @property
    def skipped(self) -> bool:
        """Whether the last step has changed nothing, since its gradient was not finite; alike on all ranks.

        DeepSpeed's optimizers look at the norm before they step, in every precision, and so does our step without ZeRO.
        """
        return bool(getattr(self.engine.optimizer, "overflow", False))

    @property
    def _loss_scaler(self) -> Any:
        return getattr(self.engine.optimizer, "loss_scaler", None)

    @property
    def scale_can_fall(self) -> bool:
        """Whether gradients can be scaled by less, in fp16."""
        scaler = self._loss_scaler
        return hasattr(scaler, "min_scale") and scaler.cur_scale > scaler.min_scale

    def gradient_norm(self) -> float:
        """Norm of the last step's gradient before clipping; infinite if the step was skipped."""
        norm = self.engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")
