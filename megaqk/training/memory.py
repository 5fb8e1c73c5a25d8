"""The memory a run needs on a rank of each pipeline stage, before it is started.

Nothing is fitted: each number is a tensor that DeepSpeed or autograd holds. What depends on time (gradients come as
activations go) is summed at the moments that can be the highest, and the highest counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from megaqk.config.root import Config
from megaqk.model.activations import ELEMENT_BYTES, count_activations
from megaqk.model.decoder import stage_bounds
from megaqk.model.parameters import ParameterInfo
from megaqk.model.vocab_size import Vocabulary
from megaqk.optim.groups import ParameterGroup
from megaqk.parallel.world import World
from megaqk.training.zero_memory import LocalParameters, Memory, States, optimizer_states


def estimate_memory(
    config: Config,
    world: World,
    vocabulary: Vocabulary,
    parameters: Sequence[ParameterInfo],
    groups: Sequence[ParameterGroup],
    *,
    cuda: bool,
) -> list[Memory]:
    """What the fullest rank of each pipeline stage holds at its highest moment.

    Args:
        config: The run.
        world: Its processes.
        vocabulary: Size of its vocabulary.
        parameters: Every parameter of the whole model.
        groups: The optimizer groups.
        cuda: Whether it runs on CUDA devices: some kernels save less there, and communication overlaps.

    Returns:
        One for each stage, in order.
    """
    bounds = stage_bounds(world.layers_per_stage)
    stages = []
    for stage in range(world.pipeline):
        places = range(bounds[stage], bounds[stage + 1])
        local = [parameter for parameter in parameters if any(place in places for place in parameter.places)]
        sizes = {p.name: p.numel // (1 if p.shard_dim is None else world.tensor) for p in local}
        matrix = max((sizes[p.name] for p in local if p.role.layer is not None), default=0)
        grouped = [[sizes[name] for name in group.parameters if name in sizes] for group in groups]
        held = LocalParameters(groups=[group for group in grouped if group], ranks=world.data)
        states = optimizer_states(config, world, held, cuda=cuda)
        moments = _moments(config, world, vocabulary, states, stage, matrix, cuda=cuda)
        highest = max(moments, key=lambda memory: memory.total + memory.host)
        stages.append(replace(highest, snapshot=12 * sum(sizes.values()) // world.data))
    return stages


def _moments(
    config: Config,
    world: World,
    vocabulary: Vocabulary,
    states: States,
    stage: int,
    matrix: int,
    *,
    cuda: bool,
) -> Iterator[Memory]:
    """The moments of a step that can be the highest, in their order; `matrix` has the most elements in a block."""
    model, size = config.model, ELEMENT_BYTES[config.training.precision]
    count = count_activations(config, vocabulary, cuda=cuda)
    first, end = world.layers_per_stage[stage]
    layers, is_last = end - first, stage == world.pipeline - 1
    micro = layers * count.block + is_last * count.final
    # 1F1B: a stage is so many forward passes ahead of its backward passes.
    ahead = min(world.pipeline - stage, world.micro_batches)
    # What each of them received (a copy of which is the first block's input) and has sent, one gradient, and the buffer
    # into which both arrive. The last stage keeps the logits of both its slots.
    exchanged = 0
    if world.pipeline > 1:
        exchanged = count.stream * (ahead * ((stage > 0) + (not is_last)) + 2)
    kept = count.logits * (min(2, world.micro_batches) if is_last and world.pipeline > 1 else 0)
    others = max(0, kept - count.logits)
    tables = layers * config.training.sequence_length * model.head_size * 4 if model.positions == "rotary" else 0
    table = model.hidden_size * vocabulary.rows // world.tensor

    def moment(*, gradients: int, activations: int = 0, logits: int = kept, buffers: int = 0) -> Memory:
        return replace(
            states.always,
            weights=states.always.weights + tables,
            gradients=states.always.gradients + gradients,
            activations=activations,
            logits=logits,
            buffers=states.always.buffers + exchanged + buffers,
        )

    meanwhile = states.bucket + (states.copies if states.early else 0)
    # Of the passes that are ahead, the last one finds gradients of others only where there are more than these.
    passes = [(ahead, states.held if world.micro_batches > ahead else 0)]
    if ahead > 1:
        passes.append((ahead - 1, states.held))
    for flying, held in passes:
        lands = states.stays and not held
        fresh = 0 if lands else states.fresh * matrix
        if is_last:
            # The loss; then the gradient of the head, whole while those of the blocks are still to come.
            yield moment(gradients=held, activations=micro, logits=others + count.loss)
            head = held + states.fresh * table
            yield moment(gradients=head, activations=micro, logits=others + count.head, buffers=meanwhile)
        # The last block; then the first, when the others' activations are gone and their gradients there.
        gradients = held + (size * table if lands and is_last else fresh)
        yield moment(gradients=gradients, activations=flying * micro + count.backward, buffers=meanwhile)
        activations = (flying - 1) * micro + count.block + count.backward
        yield moment(gradients=states.reduced + fresh, activations=activations, buffers=meanwhile)
    yield moment(gradients=states.reduced, buffers=states.bucket + states.copies)
    yield moment(gradients=states.stepping)
