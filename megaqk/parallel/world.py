"""The processes of a job: who is where, which blocks are whose, who talks to whom, and how they agree.

Nothing here imports torch before `connect`: a configuration that does not fit its processes is refused in moments.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from megaqk.config.root import Config
from megaqk.errors import AgreedError
from megaqk.parallel.tensor_parallel import TensorParallel
from megaqk.runtime.agreement import agreed, each
from megaqk.runtime.launch import Launch

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

_T = TypeVar("_T")
# One rank may prepare data or read a large checkpoint for hours while the others wait for its word.
_FOREVER = timedelta(days=3650)


class Coordinate(NamedTuple):
    """Place of a rank on the parallel axes, outermost first.

    Tensor-parallel ranks are neighbours, since they talk most; then data, then pipeline. This is the order of
    DeepSpeed's PipeModelDataParallelTopology. A context axis would stand between data and tensor.
    """

    pipeline: int
    data: int
    tensor: int


class World:
    """All processes of a job, seen from one of them.

    Attributes:
        launch: What the launcher told this process.
        rank: This process, in [0, size).
        size: Number of processes.
        local_size: Number of them on this machine.
        sizes: Ranks on each axis; also by name as `pipeline`, `data` and `tensor`.
        coordinate: Place of this process.
        micro_batches: Forward and backward passes of one replica in one optimizer step.
        layers_per_stage: For each pipeline stage its blocks as (first, last + 1), by global depth.
        device: Device of this process; from `connect` on, as all that follows.
        grid: DeepSpeed's view of the axes, which owns the communicators.
        data_group: The ranks that hold the same part of the model.
        model_group: The ranks that hold one copy of the model together.
        tp: The tensor-parallel group.
        objects: All ranks, through host memory, whatever the backend of the rest.
    """

    device: "torch.device"
    grid: Any
    data_group: "dist.ProcessGroup"
    model_group: "dist.ProcessGroup"
    tp: TensorParallel
    objects: "dist.ProcessGroup"

    def __init__(self, config: Config, launch: Launch) -> None:
        """Lay a run out over its processes; the data-parallel size is what the other axes leave.

        Raises:
            AgreedError: Where the processes or the batch cannot be divided; one line with key, value and what is
                allowed.
        """
        parallel, training = config.parallel, config.training
        model_parallel = parallel.tensor * parallel.pipeline
        if launch.world_size < 1 or launch.world_size % model_parallel:
            raise AgreedError(
                f"world size = {launch.world_size}: must be a multiple of parallel.tensor x parallel.pipeline = "
                f"{parallel.tensor} x {parallel.pipeline} = {model_parallel}"
            )
        data = launch.world_size // model_parallel
        samples = training.micro_batch_size * data
        if training.global_batch_size % samples:
            raise AgreedError(
                f"training.global_batch_size = {training.global_batch_size}: must be divisible by "
                f"training.micro_batch_size x data-parallel size = {training.micro_batch_size} x {data} = {samples}"
            )
        self.launch = launch
        self.rank, self.size, self.local_size = launch.rank, launch.world_size, launch.local_size
        self.sizes = Coordinate(parallel.pipeline, data, parallel.tensor)
        self.pipeline, self.data, self.tensor = self.sizes
        self.coordinate = self.coordinate_of(launch.rank)
        self.micro_batches = training.global_batch_size // samples
        self.layers_per_stage = split_layers(config.model.num_layers, parallel.pipeline, parallel.layers_per_stage)
        self._sequence = parallel.sequence
        self._deterministic = training.deterministic
        self._watched = training.watchdog is not None

    @property
    def bubble_fraction(self) -> float:
        """Part of a step that a pipeline stage idles: (p - 1) / (m + p - 1) for p stages and m micro-batches.

        This is 1F1B with equal stages and no communication (Narayanan et al., arXiv 2104.04473, section 2.2, where
        the bubble is given relative to the ideal time instead: (p - 1) / m).
        """
        return (self.pipeline - 1) / (self.micro_batches + self.pipeline - 1)

    @property
    def reads_batches(self) -> bool:
        """Whether this process's pipeline stage takes tokens or labels: the first and the last do."""
        return self.coordinate.pipeline in (0, self.pipeline - 1)

    def coordinate_of(self, rank: int) -> Coordinate:
        """The coordinate of a global rank."""
        outer, tensor = divmod(rank, self.sizes.tensor)
        pipeline, data = divmod(outer, self.sizes.data)
        return Coordinate(pipeline, data, tensor)

    def connect(self) -> "World":
        """Join the other processes and make every group; every rank must call it."""
        import torch.distributed as dist

        from megaqk.runtime.device import be_deterministic, start_process_group
        from megaqk.runtime.failure import meeting
        from megaqk.runtime.logs import quiet

        if self.tensor > 1:
            # One hardware queue, so that a collective starts before the product that is to hide it.
            os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        if self._deterministic:
            be_deterministic()
        with meeting(self.launch):
            self.device = start_process_group(self.launch)
        from deepspeed.runtime.pipe.topology import PipelineParallelGrid, PipeModelDataParallelTopology

        with quiet():
            self.grid = PipelineParallelGrid(
                PipeModelDataParallelTopology(num_pp=self.pipeline, num_mp=self.tensor, num_dp=self.data)
            )
        if self._watched:
            # Our watchdog tells a rank that waits for another one's disk from one that hangs; these limits do not.
            for group in dist.distributed_c10d._world.pg_map:
                dist.distributed_c10d._set_pg_timeout(_FOREVER, group)
        self.data_group = self.grid.get_data_parallel_group()
        self.model_group = self.grid.get_model_parallel_group()
        self.tp = TensorParallel()
        if self.tensor > 1:
            self.tp = TensorParallel(
                size=self.tensor,
                rank=self.coordinate.tensor,
                group=self.grid.get_slice_parallel_group(),
                sequence=self._sequence,
            )
        self.objects = self.new_host_group()
        return self

    def new_host_group(self) -> "dist.ProcessGroup":
        """All ranks, through host memory, over connections of their own; every rank must call it."""
        import torch.distributed as dist

        group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=_FOREVER)
        return group

    def allgather(self, value: _T, group: "dist.ProcessGroup | None" = None) -> list[_T]:
        """Every rank's value, in rank order, on every rank; over `objects` or another `new_host_group`."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value, group=group or self.objects)
        return gathered

    def agreed(self, action: Callable[[], _T]) -> list[_T]:
        """Run an action on every rank, and give every rank all results or the first failure; see `agreement.agreed`."""
        return agreed(self, action)

    def each_does(self, action: Callable[[], _T]) -> _T:
        """Run an action on every rank, and give each its own result or all the first failure; see `agreed`."""
        return each(self, action)

    def first_does(self, action: Callable[[], _T]) -> _T:
        """Run an action on rank 0 alone, and give every rank its result or its failure; see `agreed`."""
        results = self.agreed(lambda: action() if self.rank == 0 else None)
        return results[0]  # type: ignore[return-value]  # rank 0 ran it

    def require_same(self, entries: Sequence[str], what: str) -> None:
        """Raise an `AgreedError` with the first difference where ranks hold other lists: of `what`, for the message."""
        lists = self.allgather(list(entries))
        for rank, theirs in enumerate(lists):
            for first, other in zip_longest(lists[0], theirs, fillvalue="none"):
                if first != other:
                    raise AgreedError(
                        f"the ranks differ in their {what}: rank 0 has {first}, rank {rank} has {other}; give all "
                        "ranks the same files and versions"
                    )


def split_layers(num_layers: int, stages: int, per_stage: tuple[int, ...] | None = None) -> tuple[tuple[int, int], ...]:
    """The blocks of each pipeline stage as (first, last + 1).

    Without `per_stage` they are split evenly, the earliest stages taking one more each of a remainder, since the last
    stage also has the head and the loss.
    """
    if per_stage is None:
        quotient, remainder = divmod(num_layers, stages)
        per_stage = tuple(quotient + (stage < remainder) for stage in range(stages))
    ends = [sum(per_stage[: stage + 1]) for stage in range(stages)]
    return tuple((end - count, end) for end, count in zip(ends, per_stage, strict=True))
