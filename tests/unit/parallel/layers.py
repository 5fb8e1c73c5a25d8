"""What the layer tests run on every rank; each returns the worst error against the unsharded layer."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from megaqk.parallel.cross_entropy import vocab_parallel_cross_entropy
from megaqk.parallel.gradients import (
    clip_gradients,
    global_norm,
    partial_gradient_parameters,
    reduce_partial_gradients,
)
from megaqk.parallel.linear import ColumnParallelLinear, Output, RowParallelLinear
from megaqk.parallel.sharding import local_part, new_parameter, sharding_of
from megaqk.parallel.tensor_parallel import TensorParallel
from megaqk.parallel.vocabulary import VocabParallelEmbedding

BATCH, SEQUENCE, HIDDEN, WIDE = 3, 12, 24, 36


def all_ranks(sequence: bool) -> TensorParallel:
    """All ranks as one tensor-parallel group."""
    size = dist.get_world_size()
    whole = dist.group.WORLD if size > 1 else None
    return TensorParallel(size=size, rank=dist.get_rank(), group=whole, sequence=sequence and size > 1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(ours: Tensor | None, theirs: Tensor | None) -> float:
    assert ours is not None
    assert theirs is not None
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)) if ours.numel() else 0.0


def mine(x: Tensor, tp: TensorParallel) -> Tensor:
    """This rank's part of (B, S, H) where the sequence is split."""
    return x.chunk(tp.size, dim=1)[tp.rank].contiguous() if tp.sequence else x.clone()


@torch.no_grad()
def fill(parameter: nn.Parameter, full: Tensor, tp: TensorParallel) -> None:
    parameter.copy_(local_part(full, sharding_of(parameter), tp))


def local_gradient(parameter: nn.Parameter, full: Tensor | None, tp: TensorParallel) -> float:
    assert full is not None
    return error(parameter.grad, local_part(full, sharding_of(parameter), tp))


def column_and_row(sequence: bool, bias: bool) -> dict[str, float]:
    """Two column-parallel projections, their product, a row-parallel one: forward, backward, replicated biases."""
    tp = all_ranks(sequence)
    column = ColumnParallelLinear(HIDDEN, {"up": Output(WIDE), "gate": Output(WIDE)}, bias=bias, tp=tp)
    row = RowParallelLinear(WIDE, Output(HIDDEN), bias=bias, tp=tp)
    up, gate, down = nn.Linear(HIDDEN, WIDE, bias), nn.Linear(HIDDEN, WIDE, bias), nn.Linear(WIDE, HIDDEN, bias)
    pairs = {"up": (column.up_weight, up.weight), "gate": (column.gate_weight, gate.weight)}
    pairs["down"] = (row.weight, down.weight)
    if bias:
        pairs |= {"up_bias": (column.up_bias, up.bias), "gate_bias": (column.gate_bias, gate.bias)}
        pairs["down_bias"] = (row.bias, down.bias)
    for seed, (ours, theirs) in enumerate(pairs.values()):
        theirs.data = random(*theirs.shape, seed=seed)
        fill(ours, theirs.data, tp)

    x, weights = random(BATCH, SEQUENCE, HIDDEN, seed=90), random(BATCH, SEQUENCE, HIDDEN, seed=91)
    x_whole, x_mine = x.clone().requires_grad_(), mine(x, tp).requires_grad_()
    a, b = column(x_mine)
    ours_y = row(a * b)
    theirs_y = down(up(x_whole) * gate(x_whole))
    (ours_y * mine(weights, tp)).sum().backward()
    (theirs_y * weights).sum().backward()
    partial = partial_gradient_parameters([ours for ours, _ in pairs.values()])
    assert [p is row.bias for p in partial] == [True] * (bias and sequence)
    reduce_partial_gradients([p.grad for p in partial if p.grad is not None], tp)
    assert x_whole.grad is not None
    errors = {"y": error(ours_y, mine(theirs_y, tp)), "x": error(x_mine.grad, mine(x_whole.grad, tp))}
    return errors | {name: local_gradient(ours, theirs.grad, tp) for name, (ours, theirs) in pairs.items()}


def embedding_head_and_loss(sequence: bool, rows: int, tokens: int) -> dict[str, float]:
    """A tied table as embedding and head with the cross entropy, labels left out among them."""
    tp = all_ranks(sequence)
    table = VocabParallelEmbedding(rows, tokens, HIDDEN, tp=tp)
    full = random(rows, HIDDEN, seed=1)
    fill(table.weight, full, tp)
    whole = full.clone().requires_grad_()
    ids = torch.randint(tokens, (BATCH, SEQUENCE), generator=torch.Generator().manual_seed(2))
    labels = torch.randint(tokens, (BATCH, SEQUENCE), generator=torch.Generator().manual_seed(3))
    labels[0, :5] = labels[2] = -100

    logits = table.logits(table(ids))
    shown = logits[..., : table.tokens].detach().clone()
    losses = vocab_parallel_cross_entropy(logits, labels, first=table.first, tokens=table.tokens, tp=tp)
    loss = losses.sum() / (labels != -100).sum()
    loss.backward()
    theirs = F.embedding(ids, whole) @ whole[:tokens].t()
    expected = F.cross_entropy(theirs.flatten(0, 1), labels.flatten(), ignore_index=-100)
    expected.backward()
    each = F.cross_entropy(theirs.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
    local = theirs[..., table.first : table.first + table.rows]
    assert table.weight.grad is not None
    assert not table.weight.grad[table.tokens :].any(), "padding rows must not learn"
    return {
        "logits": error(shown, local),
        "losses": error(losses, each.view_as(labels)),
        "loss": error(loss, expected),
        "table": local_gradient(table.weight, whole.grad, tp),
    }


def nothing_to_learn() -> float:
    """All labels left out: a loss of zero."""
    tp = all_ranks(False)
    logits = random(BATCH, SEQUENCE, 4).requires_grad_()
    labels = torch.full((BATCH, SEQUENCE), -100)
    loss = vocab_parallel_cross_entropy(logits, labels, first=4 * tp.rank, tokens=4, tp=tp).sum()
    loss.backward()
    assert logits.grad is not None
    return float(loss.abs() + logits.grad.abs().max())


def norm_and_clipping(max_norm: float) -> tuple[float, float]:
    """Error of the norm and of the clipped gradients of a sharded, a replicated and an absent one."""
    tp = all_ranks(False)
    shapes: list[tuple[tuple[int, int], int | None]] = [((12, 8), 0), ((8, 12), 1), ((6, 6), None)]
    parameters = [new_parameter(shape, tp, dim=dim) for shape, dim in shapes]
    fulls = []
    for seed, (parameter, (shape, _)) in enumerate(zip(parameters, shapes, strict=True)):
        whole = nn.Parameter(torch.zeros(shape))
        whole.grad = random(*shape, seed=seed)
        parameter.grad = local_part(whole.grad, sharding_of(parameter), tp).clone()
        fulls.append(whole)
    tied = new_parameter((4, 4), tp)
    tied.grad = random(4, 4)
    tied.ds_pipe_replicated = True  # type: ignore[attr-defined]
    norm = global_norm([*parameters, tied, new_parameter((4,), tp)], tp=tp, group=dist.group.WORLD)
    expected = nn.utils.clip_grad_norm_(fulls, max_norm)
    clip_gradients(parameters, norm, max_norm)
    worst = max(local_gradient(ours, theirs.grad, tp) for ours, theirs in zip(parameters, fulls, strict=True))
    return error(norm, expected), worst


def bf16_cross_entropy() -> float:
    """Worst error of the losses of bf16 logits against the same logits in fp32: only the logits are rounded."""
    tp = all_ranks(False)
    logits = (5 * random(BATCH, SEQUENCE, 48)).bfloat16()
    labels = torch.randint(48, (BATCH, SEQUENCE), generator=torch.Generator().manual_seed(3))
    share = 48 // tp.size
    local = logits[..., tp.rank * share : (tp.rank + 1) * share]
    losses = vocab_parallel_cross_entropy(local, labels, first=tp.rank * share, tokens=share, tp=tp)
    assert losses.dtype == torch.float32
    expected = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
    return error(losses, expected.view_as(labels))
