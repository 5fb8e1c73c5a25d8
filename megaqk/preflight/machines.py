"""What each rank runs on and with: all must be the same."""

import hashlib
import platform
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import deepspeed
import torch

from megaqk import __version__
from megaqk.config.loading import dump_config
from megaqk.config.root import Config

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Machine:
    """Where a rank is, and what it has there.

    Attributes:
        host: Name of its node.
        device: Name of its GPU, or `cpu`.
        versions: What must be the same on all ranks, by name.
    """

    host: str
    device: str
    versions: dict[str, str]


def this_machine(config: Config, device: torch.device) -> Machine:
    """The machine of this rank."""
    cuda = device.type == "cuda"
    versions = {
        "configuration": _digest(dump_config(config).encode()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepspeed": deepspeed.__version__,
        "megaqk": __version__,
        "code of megaqk": code_digest(),
        "nccl": str(torch.cuda.nccl.version()) if cuda else "none",  # type: ignore[no-untyped-call]
    }
    return Machine(socket.gethostname(), torch.cuda.get_device_name(device) if cuda else device.type, versions)


def code_digest() -> str:
    """The first digits of a checksum over the source files of the package."""
    files = sorted(PACKAGE.rglob("*.py"))
    return _digest(b"".join(str(file.relative_to(PACKAGE)).encode() + file.read_bytes() for file in files))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def differences(machines: Sequence[Machine]) -> list[str]:
    """A line for each version that is not the same everywhere, which names the fewer ranks; empty if all agree."""
    lines = []
    kinds = {name: [machine.versions[name] for machine in machines] for name in machines[0].versions}
    for name, values in {"device": [machine.device for machine in machines], **kinds}.items():
        [(usual, _), *others] = Counter(values).most_common()
        for other, _ in others:
            ranks = [rank for rank, value in enumerate(values) if value == other]
            has = f"{places(ranks, machines)}: {name} = {other}"
            lines.append(f"{has}: must be the same everywhere, and most ranks have {usual}")
    return lines


def places(ranks: Sequence[int], machines: Sequence[Machine]) -> str:
    """Ranks by their nodes, such as `rank 2, 3 on node2`."""
    nodes = nodes_of(machines, ranks)
    return "; ".join(f"rank {', '.join(map(str, who))} on {host}" for host, who in nodes.items())


def nodes_of(machines: Sequence[Machine], ranks: Sequence[int] | None = None) -> dict[str, list[int]]:
    """The ranks of each node, by its name: all, or some."""
    nodes: dict[str, list[int]] = {}
    for rank in range(len(machines)) if ranks is None else ranks:
        nodes.setdefault(machines[rank].host, []).append(rank)
    return nodes
