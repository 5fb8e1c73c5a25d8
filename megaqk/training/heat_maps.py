"""What probes found, as curves and pictures for TensorBoard."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_SUMMARIES: dict[str, Callable[[Sequence[float]], float]] = {
    "attention_entropy": lambda heads: sum(heads) / len(heads),
    "attention_max_probability": lambda heads: sum(heads) / len(heads),
    "logit_std": lambda heads: sum(heads) / len(heads),
    "logit_max": max,
    "qk_singular_value": max,
}
"""How a number by head becomes one by layer."""

_BY_HEAD = ("attention_entropy", "logit_max")
_BY_STEP = {
    "attention_entropy": "entropy / log(row length)",
    "logit_max": "largest attention logit",
    "attention_write_energy": "E|write|² / E|stream|²",
    "ffn_write_energy": "E|write|² / E|stream|²",
}
"""Quantity and unit of what is drawn."""


def curves(record: Mapping[str, Any]) -> dict[str, float]:
    """The points of a record of `probes.jsonl`, by tag: of heads their mean, of the largest logit the largest."""
    found: dict[str, float] = {}

    def add(tag: str, value: Any, summary: Callable[[Sequence[float]], float] | None) -> None:
        if isinstance(value, Mapping):
            for name, part in value.items():
                add(f"{tag}/{name}", part, None)
        elif isinstance(value, list):
            width = max(2, len(str(len(value) - 1)))
            for layer, one in enumerate(value):
                found[f"{tag}/layer{layer:0{width}}"] = summary(one) if summary else one
        else:
            found[tag] = value

    for name, value in record.items():
        if name not in ("step", "tokens"):
            add(f"probes/{name}", value, _SUMMARIES.get(name))
    return found


def heat_maps(records: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Pictures of the records of `probes.jsonl`, oldest first, by tag: PNG.

    Returns:
        `probes/NAME/layer_by_step` over all records, and `probes/NAME/head_by_layer` of the last.
    """
    steps = [record["step"] for record in records]
    # The cell of a step begins at it.
    edges = [*steps, 2 * steps[-1] - steps[-2] if len(steps) > 1 else steps[-1] + 1]
    pictures = {}
    for name, quantity in _BY_STEP.items():
        by_step = [[_known(name, layer) for layer in record[name]] for record in records]
        by_layer = [list(layer) for layer in zip(*by_step, strict=True)]
        pictures[f"probes/{name}/layer_by_step"] = _draw(by_layer, edges, name, "step", "layer", quantity)
    for name in _BY_HEAD:
        layers = [[float("nan") if value is None else value for value in layer] for layer in records[-1][name]]
        by_head = [list(head) for head in zip(*layers, strict=True)]
        title = f"{name}, step {steps[-1]}"
        pictures[f"probes/{name}/head_by_layer"] = _draw(
            by_head, _around(layers), title, "layer", "head", _BY_STEP[name]
        )
    return pictures


def _known(name: str, value: Any) -> float:
    """The number of a layer, from one of its own or from those of its heads; NaN where there is none."""
    values = value if isinstance(value, list) else [value]
    if any(one is None for one in values):
        return float("nan")
    return _SUMMARIES[name](values) if name in _SUMMARIES else values[0]


def _around(items: Sequence[Any]) -> list[float]:
    """The edges of cells whose middles are the numbers of some things."""
    return [index - 0.5 for index in range(len(items) + 1)]


def _draw(
    rows: Sequence[Sequence[float]], edges: Sequence[float], title: str, across: str, up: str, quantity: str
) -> bytes:
    # Half a second to import, and only rank 0 draws.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.subplots()
    mesh = axes.pcolormesh(edges, _around(rows), rows)
    axes.set(title=title, xlabel=across, ylabel=up)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(mesh, label=quantity)
    with io.BytesIO() as stream:
        figure.savefig(stream, format="png", dpi=100)
        return stream.getvalue()
