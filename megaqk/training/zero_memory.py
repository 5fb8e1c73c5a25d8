"""What the optimizers of DeepSpeed 0.19.8 hold on a rank, by ZeRO stage and precision: each number is a tensor."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from megaqk.config.deepspeed import deepspeed_config, zero_stage_in_use
from megaqk.config.root import Config
from megaqk.model.activations import ELEMENT_BYTES
from megaqk.parallel.world import World

_FALLBACK_BUCKET = 500_000_000
"""Elements after which DeepSpeed's engine flattens and reduces the gradients that have come together."""

_MAX_REUSE_DISTANCE = 1_000_000_000
"""ZeRO-3: weights that are used again within so many elements stay whole."""


HOST_PARTS = ("host", "snapshot")
"""What of `Memory` lies in the host's memory, whatever the device."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank at one moment.

    Attributes:
        weights: Parameters in the precision of the model, and tables of positions.
        gradients: Of the parameters, accumulated or on their way there.
        optimizer: fp32 weights and the two moments.
        activations: What the backward pass needs.
        logits: Logits and cross entropy.
        buffers: Gradient buckets and copies that are reduced, what pipeline stages exchange.
        host: In the host's memory, where the optimizer is offloaded there.
        snapshot: In the host's memory, from which checkpoints are written: fp32 weights and moments once more.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    buffers: int = 0
    host: int = 0
    snapshot: int = 0

    @property
    def total(self) -> int:
        """All but what the host holds."""
        return sum(getattr(self, field.name) for field in fields(self) if field.name not in HOST_PARTS)


@dataclass(frozen=True, kw_only=True)
class States:
    """What DeepSpeed's optimizer holds on one rank.

    Attributes:
        always: At every moment.
        fresh: Bytes for each element of a gradient that is not where it belongs yet.
        held: Gradients when a backward pass begins and others of the step have ended.
        reduced: Gradients when the last backward pass of a step has ended.
        stays: Whether the gradients of a step's first backward pass belong where torch puts them.
        bucket: Buffers during a backward pass.
        copies: More of them while gradients are reduced.
        early: Whether they are reduced while the backward pass goes on.
        stepping: Gradients while the optimizer steps.
    """

    always: Memory
    fresh: int
    held: int = 0
    reduced: int = 0
    stays: bool = False
    bucket: int = 0
    copies: int = 0
    early: bool = False
    stepping: int = 0


@dataclass(frozen=True, kw_only=True)
class LocalParameters:
    """The parameters of a rank.

    Attributes:
        groups: Elements of each, by optimizer group.
        ranks: Data-parallel ranks that share what ZeRO shares.
    """

    groups: Sequence[Sequence[int]]
    ranks: int

    @property
    def sizes(self) -> list[int]:
        """Elements of each."""
        return [size for group in self.groups for size in group]

    @property
    def shard(self) -> int:
        """Elements of a rank's part of all."""
        return -(-sum(self.sizes) // self.ranks)

    @property
    def largest_shard(self) -> int:
        """Elements of its part of the largest group."""
        return -(-max(map(sum, self.groups)) // self.ranks)

    def touched(self, above: int = 0) -> int:
        """Elements of the tensors, larger than so much, that a rank's parts touch; of the rank that has most."""
        totals = [0] * self.ranks
        for group in self.groups:
            shard, begin = -(-sum(group) // self.ranks), 0
            for size in group:
                for rank in range(begin // shard, (begin + size - 1) // shard + 1):
                    totals[rank] += size if size > above else 0
                begin += size
        return max(totals)


def optimizer_states(config: Config, world: World, local: LocalParameters, *, cuda: bool) -> States:
    """The optimizer that DeepSpeed chooses."""
    stage, size = zero_stage_in_use(config, data=world.data), ELEMENT_BYTES[config.training.precision]
    total = sum(local.sizes)
    if stage == 0:
        # The gradients stay where torch puts them, and the engine reduces a flat copy of them.
        always = Memory(weights=4 * total, optimizer=8 * total)
        copies = 4 * _flattened(local.sizes)
        return States(always=always, fresh=4, held=4 * total, reduced=4 * total, stays=True, copies=copies)
    if stage == 3:
        return _zero3(config, local, size)
    offload = config.deepspeed.offload_optimizer == "cpu"
    if config.training.precision == "bf16" and stage == 1 and not offload:
        # BF16_Optimizer: the fp32 sums exist from the start, and bf16 gradients are zeroed rather than freed.
        at_once = config.deepspeed.immediate_grad_update
        narrow = 0 if at_once else 2 * total
        return States(
            always=Memory(weights=2 * total, optimizer=12 * local.shard, gradients=4 * total),
            fresh=2 + 4 * at_once,
            held=narrow,
            reduced=narrow,
            stays=not at_once,
            copies=4 * _flattened([sum(group) for group in local.groups]),
        )
    return _zero12(config, world, local, size, cuda=cuda)


def _zero12(config: Config, world: World, local: LocalParameters, size: int, *, cuda: bool) -> States:
    """DeepSpeedZeroOptimizer: gradients are copied into a bucket, which is reduced when it is full."""
    deepspeed, bf16 = config.deepspeed, config.training.precision == "bf16"
    settings = deepspeed_config(config, micro_batches=world.micro_batches, cuda=cuda)["zero_optimization"]
    overlap, second_pass = bool(settings["overlap_comm"]), world.micro_batches > 1
    zero2, offload = config.parallel.zero_stage == 2, deepspeed.offload_optimizer == "cpu"
    total, shard, bucket = sum(local.sizes), local.shard, deepspeed.reduce_bucket_size
    # Of the reduced gradients it keeps the tensors that its shard touches; in bf16 the shard alone, in fp32.
    kept = 4 * shard if bf16 else size * local.touched() * (not offload)
    always = Memory(weights=size * total, optimizer=12 * shard)
    if offload:
        # Weights, moments and gradients in fp32, the new weights, and what ZeRO-2 adds up over the passes.
        sums = size * local.touched() * (zero2 and second_pass and not bf16)
        largest = size * max(local.sizes)
        always = Memory(weights=size * total, buffers=largest, host=(16 + size) * shard + sums + largest)
    # What is larger than the bucket is reduced by itself. Its gradient stays until the pass has ended, unless it moves
    # to those that are kept.
    filled = min(max(bucket, *local.sizes), total)
    alone = size * local.touched(above=bucket) * (bf16 or offload)
    # It steps with a flat copy of what it kept, group by group; in bf16 that is flat.
    flat = 0 if offload or bf16 else (4 if size == 4 else 2 + 4) * local.largest_shard
    if zero2:
        return States(
            always=always,
            fresh=size,
            held=kept,
            # The sums so far and those of this pass; bf16 adds to the former at once.
            reduced=kept * (1 + (second_pass and not bf16)) + alone,
            bucket=size * bucket * (1 + overlap),
            copies=(4 if size == 4 else 2 + 4) * filled,
            early=True,
            stepping=kept + flat,
        )
    wide = 4 if bf16 else size
    scattered = wide * filled * (world.data > 1)
    return States(
        always=always,
        fresh=size,
        held=wide * total,
        reduced=wide * total,
        stays=not overlap,
        bucket=wide * bucket * (1 + overlap),
        # The pipeline engine adds a bucket. As the first is emptied, what is kept gets its place.
        copies=wide * bucket * (world.pipeline > 1) + max(scattered, kept - wide * filled),
        early=overlap,
        stepping=kept + flat,
    )


def _zero3(config: Config, local: LocalParameters, size: int) -> States:
    """DeepSpeedZeroOptimizer_Stage3, whose buckets are there from the start."""
    deepspeed, precision, shard = config.deepspeed, config.training.precision, local.shard
    total, bucket = sum(local.sizes), deepspeed.reduce_bucket_size
    small = sum(numel for numel in local.sizes if numel < deepspeed.stage3_param_persistence_threshold)
    # Forward and backward pass are one walk: the last layers' weights are used again soon enough to stay whole.
    live = min(total - small, _MAX_REUSE_DISTANCE // 2 + deepspeed.stage3_prefetch_bucket_size)
    # Gradients are reduced in fp32, and but for fp16 so they are kept. fp32 weights have a second copy, too.
    wide = 2 if precision == "fp16" else 4
    always = Memory(weights=size * (shard + small + live), buffers=4 * bucket)
    if deepspeed.offload_optimizer == "cpu":
        always = replace(always, host=(12 + wide + 4) * shard)
    else:
        always = replace(always, optimizer=12 * shard, gradients=wide * shard)
    return States(
        always=always,
        fresh=size,
        copies=4 * min(bucket, total),
        early=True,
        stepping=0 if always.host else 4 * local.largest_shard,
    )


def _flattened(sizes: Sequence[int]) -> int:
    """Elements of the largest copy when tensors are flattened together up to a limit; one alone is not copied."""
    largest, together = 0, list[int]()
    for size in sizes:
        together.append(size)
        if sum(together) > _FALLBACK_BUCKET:
            largest = max(largest, sum(together) if together[1:] else 0)
            together = []
    return max(largest, sum(together) if together[1:] else 0)
