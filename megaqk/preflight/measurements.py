"""What processors and connections do, all ranks measuring together; each must be called by every rank."""

import socket
import time
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist

from megaqk.errors import UserError
from megaqk.parallel.world import World
from megaqk.runtime.pulse import Pulse
from megaqk.training.peak import products

REPEATS = 5
"""Measurements of one thing. The best of a connection's counts, and all of a processor's: it may be slow at times."""


def product_rate(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.3) -> float:
    """FLOP/s of this rank's matrix products, while all ranks multiply.

    Raises:
        UserError: On a rank whose device fails.
    """
    done = spent = 0.0
    try:
        multiply = products(device, dtype)
        multiply(0.0)
        for _ in range(REPEATS):
            dist.barrier()
            start = time.perf_counter()
            done += multiply(seconds)
            spent += time.perf_counter() - start
    except torch.AcceleratorError as error:
        raise UserError(f"{socket.gethostname()}: matrix products fail: {str(error).splitlines()[0]}") from error
    return done / spent


def reduction_rate(world: World) -> float:
    """Bytes/s that each rank sends in a reduction over all, 2 (n - 1) / n of its size.

    Raises:
        UserError: The sum is wrong.
    """
    values = torch.empty(_elements(world.device), device=world.device)

    def reduce() -> None:
        values.fill_(world.rank + 1)
        dist.all_reduce(values)

    seconds = _best(reduce, world.device)
    expected = world.size * (world.size + 1) / 2
    if not bool((values == expected).all()):
        raise UserError(f"a reduction over all ranks gives {values[values != expected][0]:g}: must be {expected:g}")
    return 2 * (world.size - 1) / world.size * values.nbytes / seconds


def exchange_rates(world: World, nodes: Sequence[Sequence[int]], pulse: Pulse) -> dict[tuple[int, int], float]:
    """Bytes/s between each two nodes, both ways together, all other pairs being as busy.

    Args:
        world: The processes.
        nodes: The ranks of each node.
        pulse: Beats with each round.
    """
    mine = next(index for index, ranks in enumerate(nodes) if world.rank in ranks)
    place = nodes[mine].index(world.rank)
    sent, received = (torch.ones(_elements(world.device), device=world.device) for _ in range(2))
    measured: dict[tuple[int, int], float] = {}
    for partners in pulse.beats(rounds(len(nodes))):
        partner = partners[mine]
        dist.barrier()
        if partner == mine or place >= len(nodes[partner]):
            continue
        peer = nodes[partner][place]

        def exchange(peer: int = peer) -> None:
            ways = [dist.P2POp(dist.isend, sent, peer), dist.P2POp(dist.irecv, received, peer)]
            for work in dist.batch_isend_irecv(ways):
                work.wait()

        measured[min(mine, partner), max(mine, partner)] = sent.nbytes / _best(exchange, world.device)
    total: dict[tuple[int, int], float] = {}
    for rates in world.allgather(measured):
        for pair, rate in rates.items():
            total[pair] = total.get(pair, 0.0) + rate
    return total


def rounds(nodes: int) -> Iterator[list[int]]:
    """The partner of each node, round by round, until each two have met once; a node that rests is its own."""
    seats = nodes + nodes % 2
    for turn in range(seats - 1):
        # All but the last sit in a circle; who would meet himself meets the last.
        partners = [(turn - node) % (seats - 1) for node in range(seats - 1)]
        alone = next(node for node, partner in enumerate(partners) if node == partner)
        partners[alone] = seats - 1
        partners.append(alone)
        yield [partner if partner < nodes else node for node, partner in enumerate(partners[:nodes])]


def _elements(device: torch.device) -> int:
    return 16 << 20 if device.type == "cuda" else 1 << 20


def _best(action: Callable[[], None], device: torch.device) -> float:
    action()  # connections are made
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
