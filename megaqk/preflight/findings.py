"""What the measurements say: tables for people, and which machine is too slow."""

from collections.abc import Mapping, Sequence
from statistics import median

from megaqk.preflight.machines import Machine, nodes_of, places
from megaqk.runtime.text_table import table

PAIRS_SHOWN = 8
"""Of more pairs of nodes, the slowest are shown."""


def slow_ranks(rates: Sequence[float], machines: Sequence[Machine], least: float) -> list[str]:
    """A line for each rank whose products are below `least` of the median."""
    usual = median(rates)
    return [
        f"{places([rank], machines)}: multiplies at {rate / 1e9:.4g} GFLOP/s, {rate / usual:.2f} of the median "
        f"{usual / 1e9:.4g}: must be at least {least:g} of it"
        for rank, rate in enumerate(rates)
        if rate < least * usual
    ]


def slow_nodes(pairs: Mapping[tuple[int, int], float], names: Sequence[str], least: float) -> list[str]:
    """A line for each node, or pair of them, whose connection is below `least` of the median; two have none."""
    if len(names) < 3:
        return []
    usual = median(pairs.values())
    slow = {pair for pair, rate in pairs.items() if rate < least * usual}
    # What is slow with all others is slow itself.
    lame = [node for node in range(len(names)) if all(pair in slow for pair in pairs if node in pair)]
    culprits = {names[node]: max(rate for pair, rate in pairs.items() if node in pair) for node in lame}
    for one, other in slow:
        if one not in lame and other not in lame:
            culprits[f"{names[one]} with {names[other]}"] = pairs[one, other]
    return [
        f"{who}: exchanges at most {rate / 1e9:.3g} GB/s, {rate / usual:.2f} of the median {usual / 1e9:.3g}: must be "
        f"at least {least:g} of it"
        for who, rate in culprits.items()
    ]


def report(
    machines: Sequence[Machine], rates: Sequence[float], pairs: Mapping[tuple[int, int], float], reduction: float
) -> str:
    """The measurements, a line for each node and each of the slowest pairs."""
    nodes = nodes_of(machines)
    unit, name = (1e12, "TFLOP/s") if max(rates) >= 1e13 else (1e9, "GFLOP/s")
    rows = [
        [host, str(len(ranks)), machines[ranks[0]].device, " ".join(f"{rates[rank] / unit:.0f}" for rank in ranks)]
        for host, ranks in nodes.items()
    ]
    text = table([["node", "ranks", "device", f"products in {name} by rank"], *rows])
    if reduction:
        text += f"\n\nreduction over all ranks: {reduction / 1e9:.3g} GB/s a rank"
    if pairs:
        names = list(nodes)
        slowest = sorted(pairs.items(), key=lambda item: item[1])[:PAIRS_SHOWN]
        rows = [[names[one], names[other], f"{rate / 1e9:.3g}"] for (one, other), rate in slowest]
        text += "\n\n" + table([["node", "with", "GB/s each way"], *rows])
        if len(pairs) > PAIRS_SHOWN:
            text += f"\nthe slowest of {len(pairs)} pairs, whose median is {median(pairs.values()) / 1e9:.3g}"
    return text
