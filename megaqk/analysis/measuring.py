"""From the checkpoints of a run to what `analysis.json` holds; docs/analysis.md describes it."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, get_args

import torch
from torch import Tensor

from megaqk.analysis.changes import Reading, change_of_logits, pathwise_section, reading_of
from megaqk.analysis.material import Material, Snapshot
from megaqk.analysis.passes import BlockView, block_views, loss_without, mean_loss
from megaqk.analysis.timing_index import Thresholds, timing_index
from megaqk.errors import UserError
from megaqk.probing.attention_statistics import AttentionStatistics
from megaqk.probing.block_statistics import EnergyKind
from megaqk.probing.pathwise import Decomposition
from megaqk.probing.similarity import linear_cka, mean_cosine


class Measurements:
    """Goes through the checkpoints of a run, oldest first.

    Activations of two are in memory: the residual streams of the reference, and what each block's attention reads, of
    the checkpoint before until that of the present takes its place.

    Args:
        material: What is measured.
        heads: Steps at which reliance is measured by head too.

    Attributes:
        series: The lists by step of `analysis.json`.
        pathwise: Its decompositions.
    """

    def __init__(self, material: Material, heads: Sequence[int]) -> None:
        self.material = material
        self.heads = heads
        self.series: dict[str, list[Any]] = {"reliance_head_steps": list(heads), "reliance_head": []}
        self.pathwise: list[dict[str, Any]] = []
        newest = material.decoder(material.weights(material.snapshots[-1]), torch.float64)
        self._reference = [view.after for view in block_views(newest, material.inputs)]
        self._readings: list[Reading] = []
        self._before: Snapshot | None = None

    def add(self, snapshot: Snapshot) -> None:
        """Measure the next.

        Raises:
            UserError: Its checkpoint is damaged or not finite.
            FaultError: A decomposition does not add up.
        """
        weights, inputs = self.material.weights(snapshot), self.material.inputs
        exact, quick = (self.material.decoder(weights, dtype) for dtype in (torch.float64, torch.float32))
        samples, labels = self.material.config.training.micro_batch_size, self.material.labels
        loss = mean_loss(quick, inputs, labels, samples=samples)
        if not math.isfinite(loss):
            raise UserError(f"step {snapshot.step}: has a loss of {loss} on the probe batch, must be finite")
        readings, changes, found = list[Reading](), list[Decomposition](), defaultdict[str, list[Any]](list)
        for layer, view in enumerate(block_views(exact, inputs)):
            for name, value in self._measured(view, self._reference[layer]).items():
                found[name].append(value)
            reading = reading_of(view)
            if self._before is not None:
                changes.append(change_of_logits(self._readings.pop(0), reading, view, inputs[1]))
            readings.append(reading)
            entering = view.seen["attention_residual"].float(), inputs[1]

            def rise(heads: Sequence[int], layer: int = layer, entering: tuple[Tensor, Tensor] = entering) -> float:
                return loss_without(quick, entering, labels, layer, heads, samples) - loss

            every_head = range(self.material.config.model.num_heads)
            found["reliance_layer"].append(rise(every_head))
            if snapshot.step in self.heads:
                found["reliance_head"].append([rise([head]) for head in every_head])
        for name, values in (("loss", loss), *found.items()):
            self.series.setdefault(name, []).append(values)
        if self._before is not None:
            energies = self.series["residual_energy"][-2:]
            self.pathwise.append(pathwise_section(self._before, snapshot, changes, energies, self.material.rates))
        self._readings, self._before = readings, snapshot

    @staticmethod
    def _measured(view: BlockView, reference: Tensor) -> dict[str, Any]:
        """What is measured of a block alone."""
        seen, attention = view.seen, AttentionStatistics()
        attention.add(seen["query"], seen["key"], seen.get("documents"))
        energy = {kind: float(seen[kind].square().mean()) for kind in get_args(EnergyKind)}
        features = view.after.flatten(0, 1), reference.flatten(0, 1)
        return {
            **{name: by_head.tolist() for name, by_head in attention.result().items()},
            "stability_cka": float(linear_cka(*features)),
            "stability_cosine": float(mean_cosine(*features)),
            "residual_energy": energy["attention_residual"],
            "attention_write_energy": energy["attention_write"] / energy["attention_residual"],
            "ffn_write_energy": energy["ffn_write"] / energy["ffn_residual"],
        }


def analyse(
    material: Material,
    *,
    heads: Sequence[int],
    upper: Sequence[int],
    thresholds: Thresholds,
    progress: Callable[[Snapshot], None],
) -> dict[str, Any]:
    """Measure everything.

    Args:
        material: What is analysed.
        heads: Steps at which reliance is measured by head too.
        upper: The upper layers, for the timing index; there are others.
        thresholds: Of the timing index.
        progress: Called after each step.

    Returns:
        What `analysis.json` holds.

    Raises:
        UserError: A checkpoint is damaged or not finite.
        FaultError: A decomposition does not add up.
    """
    measurements = Measurements(material, heads)
    for snapshot in material.snapshots:
        measurements.add(snapshot)
        progress(snapshot)
    series, num_layers = measurements.series, material.config.model.num_layers
    groups = {"upper": list(upper), "lower": [layer for layer in range(num_layers) if layer not in upper]}
    sharpness, stability = (
        {group: [fmean(values[layer] for layer in layers) for values in by_step] for group, layers in groups.items()}
        for by_step in (
            [[1 - fmean(by_head) for by_head in by_layer] for by_layer in series["attention_entropy"]],
            series["stability_cka"],
        )
    )
    steps = [snapshot.step for snapshot in material.snapshots]
    tokens = [snapshot.tokens for snapshot in material.snapshots]
    return {
        "steps": steps,
        "tokens": tokens,
        "num_layers": num_layers,
        "num_heads": material.config.model.num_heads,
        **groups,
        "reference_step": steps[-1],
        "probe_tokens": material.labels.numel(),
        **series,
        "sharpness": sharpness,
        "stability": stability,
        "timing_index": timing_index(steps, tokens, sharpness["upper"], stability["lower"], thresholds),
        "pathwise": measurements.pathwise,
    }
